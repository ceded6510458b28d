"""What the benchmark does in processes and on clusters, whose workers import it from here."""

import os
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

PATIENCE = 120.0
_barriers: list[Barrier] = []


def keep(warm: Barrier, end: Barrier) -> None:
    """An initializer: what the tasks of the warm-up wait at."""
    _barriers[:] = [warm, end]


def use_and_keep(database: dict[str, Any], warm: Barrier, end: Barrier) -> None:
    """An initializer of ours: all but the benchmark's own changes of DATABASES is there."""
    from . import project

    project.use(database, conn_max_age=database["CONN_MAX_AGE"])
    keep(warm, end)


def set_up_by_hand_and_keep(database: dict[str, Any], warm: Barrier, end: Barrier) -> None:
    """An initializer as one writes it for the standard pool, which sets Django up."""
    set_up_by_hand(database)
    keep(warm, end)


def set_up_by_hand(database: dict[str, Any]) -> None:
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()
    from . import project

    project.use(database)


def warm_up(task: Callable[[int], object]) -> None:
    """Run one task, and end when all workers have, and the parent says so."""
    try:
        task(0)
    finally:
        for barrier in _barriers:
            barrier.wait(PATIENCE)


def same(number: int) -> int:
    return number


def query(number: int) -> list[str]:
    from .models import Item, item

    return [Item.objects.get(pk=item(number)).name]


def query_and_close(number: int) -> list[str]:
    from django.db import connection

    try:
        return query(number)
    finally:
        connection.close()
