"""What the tasks do, and what they must return."""

from collections.abc import Callable
from dataclasses import dataclass

from django.db import connection, models

from . import processes
from .models import Item, Note, item, name_of

SLEEP = {"postgresql": "SELECT pg_sleep(0.01)", "mysql": "SELECT SLEEP(0.01)"}


class WrongResultError(Exception):
    """A task returned, or left in the database, what it must not."""


@dataclass(frozen=True)
class Workload:
    """One kind of task.

    Attributes:
        task: called with the task's number.
        right: what it must then return.
        one_at_a_time: the next is submitted when the one before it has its result; else all are
            queued at once.
        vendors: of the databases that it runs on.
        writes: it makes one Note with its number.
        part: of the benchmark: "threads", "cpu" (the processor time of one), "pools" (a new one each
            time), "processes" or "cluster".
        tasks: how many there are; if None, as many as take long enough.
    """

    key: str
    title: str
    task: Callable[[int], object]
    right: Callable[[int], object]
    one_at_a_time: bool = False
    vendors: tuple[str, ...] = ("postgresql", "mysql", "sqlite")
    writes: bool = False
    part: str = "threads"
    tasks: int | None = None

    def check(self, results: list[object], extra: int) -> None:
        """Check all results; `extra` tasks with the number 0 ran beside them.

        Raises:
            WrongResultError: one is wrong.
        """
        for number, result in enumerate(results):
            if result != self.right(number):
                raise WrongResultError(
                    f"{self.title}: task={number} returned={result!r} right={self.right(number)!r}"
                )
        if self.writes:
            rows = Note.objects.aggregate(count=models.Count("pk"), sum=models.Sum("number"))
            right = {"count": len(results) + extra, "sum": sum(range(len(results)))}
            if rows != right:
                raise WrongResultError(f"{self.title}: rows={rows} right={right}")


def same(number: int) -> int:
    return number


def queries(count: int) -> Callable[[int], object]:
    def task(number: int) -> list[str]:
        return [Item.objects.get(pk=item(number + each)).name for each in range(count)]

    return task


def names(count: int) -> Callable[[int], object]:
    return lambda number: [name_of(item(number + each)) for each in range(count)]


def slow_query(number: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(SLEEP[connection.vendor])
        cursor.fetchone()
    return number


def insert(number: int) -> int:
    return Note.objects.create(number=number).number


NO_DATABASE = ("none",)
ONE_QUERY = Workload("one", "1 query", queries(1), names(1))
ONE_BY_ONE = Workload("one-by-one", "1 query, in turn", queries(1), names(1), one_at_a_time=True)
NOOP = Workload("noop", "no-op", same, same, vendors=NO_DATABASE)

WORKLOADS = (
    NOOP,
    Workload("noop-by-one", "no-op, in turn", same, same, one_at_a_time=True, vendors=NO_DATABASE),
    ONE_QUERY,
    Workload("two", "2 queries", queries(2), names(2)),
    Workload("five", "5 queries", queries(5), names(5)),
    Workload("slow", "10 ms query", slow_query, same, vendors=tuple(SLEEP)),
    Workload("insert", "insert", insert, same, writes=True),
    ONE_BY_ONE,
    Workload("cpu-noop", "no-op", same, same, vendors=NO_DATABASE, part="cpu", tasks=20_000),
    Workload(
        "cpu-one", "1 query", queries(1), names(1), vendors=("postgresql",), part="cpu", tasks=1500
    ),
    Workload(
        "pools", "100 new pools", queries(1), names(1), vendors=("postgresql",), part="pools", tasks=300
    ),
    Workload(
        "processes-noop",
        "1000 no-ops",
        processes.same,
        same,
        vendors=NO_DATABASE,
        part="processes",
        tasks=1000,
    ),
    Workload(
        "processes-noop-by-one",
        "a no-op, in turn",
        processes.same,
        same,
        one_at_a_time=True,
        vendors=NO_DATABASE,
        part="processes",
        tasks=300,
    ),
    Workload(
        "processes",
        "1000 x 1 query",
        processes.query,
        names(1),
        vendors=("postgresql",),
        part="processes",
        tasks=1000,
    ),
    Workload(
        "processes-by-one",
        "1 query, in turn",
        processes.query,
        names(1),
        one_at_a_time=True,
        vendors=("postgresql",),
        part="processes",
        tasks=300,
    ),
    Workload(
        "cluster-noop",
        "1000 no-ops",
        processes.same,
        same,
        vendors=NO_DATABASE,
        part="cluster",
        tasks=1000,
    ),
    Workload(
        "cluster-noop-by-one",
        "a no-op, in turn",
        processes.same,
        same,
        one_at_a_time=True,
        vendors=NO_DATABASE,
        part="cluster",
        tasks=100,
    ),
    Workload(
        "cluster",
        "1000 x 1 query",
        processes.query,
        names(1),
        vendors=("postgresql",),
        part="cluster",
        tasks=1000,
    ),
    Workload(
        "cluster-by-one",
        "1 query, in turn",
        processes.query,
        names(1),
        one_at_a_time=True,
        vendors=("postgresql",),
        part="cluster",
        tasks=100,
    ),
)
