"""A permit belongs to its connection at every moment, and to nobody else."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings

from django_executors import ConnectionLimitTimeout, ThreadPoolExecutor, all_connections, conf
from django_executors.lifecycle import incidents, limits
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.kept import backend, held_up, results
from tests.support.observers import MariaDBObserver


@pytest.fixture
def one() -> Iterator[None]:
    """A ceiling of one; afterwards its permit is there."""
    with ceiling(1, timeout=0.0):
        yield
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(Entry.objects.count).result(10) == 0


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
        assert isinstance(pool.submit(Entry.objects.count).exception(10), ConnectionLimitTimeout)
        holding.open()
        held.result(10)


@pytest.mark.usefixtures("one")
def test_asyncio_to_thread_in_a_task() -> None:
    """The threads of `asyncio.to_thread` are no workers: nothing holds them back, and they nobody."""

    async def count() -> int:
        return await asyncio.to_thread(Entry.objects.count)

    def task() -> tuple[int, int]:
        return Entry.objects.count(), asyncio.run(count())

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(10) == (0, 0)
        assert pool.submit(Entry.objects.count).result(10) == 0


@pytest.mark.usefixtures("one")
def test_thread_that_outlives_its_task(holding: Gate) -> None:
    """A thread that has a copy of a task's context is not held back when the task has ended."""
    found: list[int] = []

    def count() -> None:
        found.append(Entry.objects.count())
        connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        context = pool.submit(contextvars.copy_context).result(10)
        held = pool.submit(holding)
        holding.wait_for()
        holding.open()
        held.result(10)
        with limits_taken():
            thread = threading.Thread(target=context.run, args=[count])
            thread.start()
            thread.join(10)
    assert found == [0]


def limits_taken() -> Any:
    """No turn for anybody."""
    return override_settings(EXECUTORS_MAX_CONNECTIONS=None)  # whoever reads it is refused


@pytest.mark.parametrize("step", range(1, 40))
@pytest.mark.usefixtures("one")
def test_interrupted_at_any_moment(step: int) -> None:
    """An interruption while a worker waits for its permit, or has just got it, costs none."""

    def task() -> None:
        steps = iter(range(1, 10_000))

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            name = frame.f_code.co_name
            if frame.f_code.co_filename != limits.__file__ or name in ("_give", "take_back"):
                return None
            if next(steps) == step:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            Entry.objects.count()
        finally:
            sys.settrace(before)

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(task).exception(10), KeyboardInterrupt | None)


def test_fork_in_async_code_of_a_task() -> None:
    """A child that is forked in a task's async code connects anew."""

    def forks() -> tuple[int, str]:
        of_parent = backend()

        def child() -> None:
            assert backend() != of_parent

        return fork(child)

    async def asynchronous() -> tuple[int, str]:
        return await sync_to_async(forks)()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(asynchronous())).result(30) == (0, "")


def test_settings_that_change_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before a change is not kept after it."""
    read = conf.read

    def change(name: str) -> Any:
        found = read(name)
        conf._forget(setting=name)
        return found

    conf._forget(setting=conf.MAX_CONNECTIONS)
    with ceiling(1):
        monkeypatch.setattr(conf, "read", change)
        assert conf.current().max_connections == {"default": 1}
        monkeypatch.undo()
    assert conf.current().max_connections == {}


def test_log_handler_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the log of a full server does not replace the task's own."""

    def note(*arguments: object) -> None:
        raise LookupError

    monkeypatch.setattr(incidents, "note", note)
    monkeypatch.setitem(connections.settings["default"], "PORT", 1)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(Entry.objects.count).exception(10), OperationalError)
    monkeypatch.undo()


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
