"""A permit belongs to its connection at every moment, and to nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings

from django_executors import ConnectionLimitTimeout, ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling
from tests.support.gates import Gate
from tests.support.kept import held_up, results


@pytest.fixture
def one() -> Iterator[None]:
    """A ceiling of one; afterwards its permit is there."""
    with ceiling(1, timeout=0.0):
        yield
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(Entry.objects.count).result(20) == 0


@pytest.mark.usefixtures("one")
def test_connect_within_a_connect(monkeypatch: pytest.MonkeyPatch, holding: Gate) -> None:
    """A backend that reads its credentials from another alias keeps its permit meanwhile."""
    get_params = DatabaseWrapper.get_connection_params

    def get_connection_params(self: Any) -> Any:
        if self.alias == "default":
            with connections["other"].cursor() as cursor:
                cursor.execute("SELECT 1")
        return get_params(self)

    monkeypatch.setattr(DatabaseWrapper, "get_connection_params", get_connection_params)
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(holding)
        holding.wait_for()
        assert isinstance(pool.submit(Entry.objects.count).exception(20), ConnectionLimitTimeout)
        holding.open()
        held.result(20)


@pytest.mark.usefixtures("one", "watch_every_thread")
def test_asyncio_to_thread_in_a_task() -> None:
    """The threads of `asyncio.to_thread` are no workers: nothing holds them back, and they nobody."""

    def task() -> tuple[int, int]:
        return Entry.objects.count(), asyncio.run(asyncio.to_thread(Entry.objects.count))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(20) == (0, 0)


@pytest.mark.usefixtures("one")
def test_thread_that_outlives_its_task() -> None:
    """A thread that has a copy of a task's context is not held back when the task has ended."""
    found: list[int] = []

    def count() -> None:
        found.append(Entry.objects.count())
        connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        context = pool.submit(contextvars.copy_context).result(20)
        with override_settings(EXECUTORS_MAX_CONNECTIONS=None):  # whoever reads it is refused
            thread = threading.Thread(target=context.run, args=[count])
            thread.start()
            thread.join(20)
    assert found == [0]


# The ceiling with other databases, and with async code.


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

    def task() -> int:
        return asyncio.run(Entry.objects.acount())

    with ceiling(1, timeout=0.0), ThreadPoolExecutor(2) as pool:
        assert pool.submit(task).result(20) == 0
        held = pool.submit(holding)
        holding.wait_for()
        error = pool.submit(task).exception(20)
        assert isinstance(error, ConnectionLimitTimeout)
        holding.open()
        held.result(20)
        assert all_connections() == ()
