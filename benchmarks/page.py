"""A page that makes five slow queries, in the ways that there are."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

from django.db import connection
from django.db.models import FloatField, Func, TextField, Value
from django.db.models.functions import Cast

import django_executors

from .models import Item, make_tables
from .project import let_go, use
from .ratios import Figure
from .servers import WORKERS, Server
from .workloads import WrongResultError

QUERIES, SECONDS = 5, 0.02
#: In each round, by each way, one after another.
PAGES = 20


def pages(server: Server, rounds: int) -> Iterator[str]:
    """Say how long a page takes in each way, as a multiple of its slowest query alone."""
    use(server.database)
    make_tables()
    connection.close()
    for title, options in (("defaults", {}), ("conn_max_idle=5", {"conn_max_idle": 5.0})):
        with (
            django_executors.ThreadPoolExecutor(WORKERS, **options) as ours,
            django_executors.ThreadPoolExecutor(1) as other,
        ):
            ways: dict[str, tuple[Callable[[Executor], list[Any]], Executor]] = {
                "the slowest query alone": (alone, other),
                "one after another": (in_turn, other),
                "submit(list, queryset)": (by_submit, ours),
                "load(queryset)": (by_load, ours),
            }
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds):
                for way in sorted(ways, key=lambda way: hash((way, number))):
                    seconds[way].append(measure(*ways[way]))
        slowest = seconds["the slowest query alone"]
        yield f"{server.title}, {title}: {QUERIES} queries of {SECONDS * 1e3:.0f} ms each"
        for way, taken in seconds.items():
            figure = Figure.of([one / alone for one, alone in zip(taken, slowest, strict=True)])
            yield f"  {way}: {figure} = {sorted(taken)[len(taken) // 2] * 1e3:.1f} ms"
        by_hand = zip(seconds["load(queryset)"], seconds["submit(list, queryset)"], strict=True)
        yield f"  load against submit: {Figure.of([ours / theirs for ours, theirs in by_hand])}"
    let_go()


def queryset(number: int) -> Any:
    slept = Cast(Func(Value(SECONDS, FloatField()), function="pg_sleep"), TextField())
    return Item.objects.annotate(slept=slept).filter(pk=number + 1)


def measure(way: Callable[[Executor], list[Any]], pool: Executor) -> float:
    """Return the seconds that one page takes.

    Raises:
        WrongResultError: a query returned the wrong row.
    """
    way(pool)
    began = time.perf_counter()
    for _ in range(PAGES):
        rows = way(pool)
        connection.close()  # as Django does at the end of a request
    seconds = (time.perf_counter() - began) / PAGES
    if [item.pk for item in rows] != list(range(1, len(rows) + 1)):
        raise WrongResultError("a page")
    return seconds


def alone(pool: Executor) -> list[Any]:
    return list(queryset(0))


def in_turn(pool: Executor) -> list[Any]:
    return [item for number in range(QUERIES) for item in queryset(number)]


def by_submit(pool: Executor) -> list[Any]:
    futures = [pool.submit(list, queryset(number)) for number in range(QUERIES)]
    return [item for future in futures for item in future.result()]


def by_load(pool: Any) -> list[Any]:
    loaded = [pool.load(queryset(number)) for number in range(QUERIES)]
    return [item for each in loaded for item in each]
