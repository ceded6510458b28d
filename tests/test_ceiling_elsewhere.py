"""The ceiling with other databases, and with async code."""

from __future__ import annotations

import asyncio

import pytest
from django.db import connections

from django_executors import ConnectionLimitTimeout, ThreadPoolExecutor, all_connections

from .ceilings import ceiling
from .gates import Gate
from .keeping import held_up, results
from .observers import MariaDBObserver
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


def test_sqlite_in_memory_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django never closes SQLite in memory: its workers do not wait for each other."""
    entry = {**connections.settings["sqlite"], "NAME": "file:ceiling?mode=memory&cache=shared"}
    monkeypatch.setitem(connections.settings, "memory", entry)

    def task() -> None:
        connections["memory"].ensure_connection()

    with ceiling(1, timeout=0.0, alias="memory"), ThreadPoolExecutor(4) as pool:
        with held_up(pool, 4):
            futures = [pool.submit(task) for _ in range(20)]
        results(futures)


def test_async_code_in_a_task(holding: Gate) -> None:
    """The thread in which a task's async code uses the ORM takes a permit, in its worker's name."""

    async def count() -> int:
        return await Entry.objects.acount()

    with ceiling(1, timeout=0.05), ThreadPoolExecutor(2, "shop") as pool:
        assert pool.submit(lambda: asyncio.run(count())).result(10) == 0
        held = pool.submit(holding)
        holding.wait_for()
        error = pool.submit(lambda: asyncio.run(count())).exception(10)
        assert isinstance(error, ConnectionLimitTimeout)
        holding.open()
        held.result(10)
        assert all_connections() == ()


def test_mariadb(mariadb: MariaDBObserver) -> None:
    """The ceiling holds for MariaDB."""
    seen: list[int] = []

    def task(number: int) -> int:
        Entry.objects.using("mariadb").count()
        seen.append(len(all_connections()))
        return number

    with ceiling(2, alias="mariadb"), ThreadPoolExecutor(8) as pool:
        assert list(pool.map(task, range(40))) == list(range(40))
    assert max(seen) <= 2
    assert not mariadb.left()
