"""`assert_no_open_connections` on Django's pool, and on databases in memory that stay open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections

from django_executors import ThreadPoolExecutor, connection_scope
from django_executors.testing import assert_no_open_connections

from .leaking import WORKERS, checked, collect, leaks, message_of, run, standing
from .observers import PostgresObserver
from .testapp.models import Entry


def count_pooled() -> None:
    Entry.objects.using("pooled").count()


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> Iterator[dict[str, Any]]:
    """The options of a new pool of Django's for the alias `pooled`; a test may change them first."""
    connections["pooled"].close_pool()
    assert not postgres.left("pooled")
    options: dict[str, Any] = {"min_size": 1, "max_size": WORKERS, "timeout": 10.0}
    monkeypatch.setitem(connections.settings["pooled"], "OPTIONS", {"pool": options})
    yield options
    connections["pooled"].close()
    connections["pooled"].close_pool()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias `memory`, named as the database of a test run is."""
    name = "file:memory_of_the_leak_detector?mode=memory&cache=shared"
    monkeypatch.setitem(connections.settings, "memory", connections.settings["sqlite"] | {"NAME": name})


# Django's pool


@leaks
@pytest.mark.parametrize("collected", [False, True])
def test_slot_of_djangos_pool(
    collected: bool, pooled: dict[str, Any], postgres: PostgresObserver
) -> None:
    """A slot that a dead thread took from Django's pool is named once, collected or not."""
    assert connections["pooled"].pool  # which keeps the wrapper alive that made it
    pids: list[int] = []

    def target() -> None:
        connections["pooled"].ensure_connection()
        pids.append(connections["pooled"].connection.info.backend_pid)
        assert pids[0] in postgres.backends("pooled")

    def body() -> None:
        run(target)
        if collected:
            collect()

    said = message_of(body)
    assert said.startswith("1 database connection(s)")
    assert f"thread=orders alias=pooled backend_pid={pids[0]} " in said


@leaks
def test_slot_that_the_calling_thread_threw_away(pooled: dict[str, Any]) -> None:
    """A slot that the calling thread can no longer give back is lost for good: that is a leak."""
    run(lambda: connections["pooled"].pool)

    def body() -> None:
        count_pooled()
        del connections["pooled"]
        collect()

    assert "thread=MainThread alias=pooled " in message_of(body)


@checked
def test_djangos_pool_while_it_grows(pooled: dict[str, Any]) -> None:
    """Django's pool may open connections of its own accord meanwhile, up to its size."""
    together = threading.Barrier(WORKERS)

    def task() -> None:
        count_pooled()
        together.wait(10)

    with assert_no_open_connections():
        pool = ThreadPoolExecutor(WORKERS)
        for future in [pool.submit(task) for _ in range(WORKERS)]:
            future.result(10)
    assert connections["pooled"].pool.get_stats()["pool_size"] == WORKERS


@checked
def test_djangos_pool_that_fills_slowly(pooled: dict[str, Any]) -> None:
    """What it is still connecting when the block ends is nobody's leak."""
    go_on = threading.Event()

    class OneThenSlow(psycopg.Connection[Any]):
        first = threading.Lock()

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            if not cls.first.acquire(blocking=False):
                go_on.wait(30)
            return super().connect(*args, **kwargs)

    pooled |= {"min_size": WORKERS, "connection_class": OneThenSlow}
    try:
        with assert_no_open_connections(timeout=0.0):
            ThreadPoolExecutor(1).submit(count_pooled).result(10)
    finally:
        go_on.set()


@checked
@pytest.mark.parametrize("how", ["unopened", "closed"])
def test_djangos_pool_that_is_not_open(how: str, pooled: dict[str, Any]) -> None:
    """A pool that has been made and not opened, or that has been closed, has lost nothing."""
    with assert_no_open_connections(timeout=0.0):
        pool = connections["pooled"].pool
        if how == "closed":
            pool.open(wait=True)
            pool.close()


@checked
def test_djangos_pool_that_was_replaced(pooled: dict[str, Any]) -> None:
    """A connection that outlived its pool may come back in the block."""
    count_pooled()
    connections["pooled"].close_pool()
    with assert_no_open_connections(timeout=0.0):
        connections["pooled"].close()


# In memory


@leaks
@pytest.mark.usefixtures("memory")
def test_in_memory() -> None:
    """A database in memory counts as any other, so that a project without a server sees its leaks."""
    assert "thread=orders alias=memory backend_pid=None " in message_of(
        lambda: run(lambda: connections["memory"].ensure_connection())
    )


@leaks
@pytest.mark.usefixtures("memory")
def test_in_memory_opened_again() -> None:
    """A database in memory that was closed, and is then opened anew, counts again."""

    def target() -> None:
        wrapper: Any = connections["memory"]
        wrapper.ensure_connection()
        wrapper.close()
        wrapper.connection.close()
        wrapper.connection = None
        wrapper.ensure_connection()

    assert "thread=orders alias=memory " in message_of(lambda: run(target))


@pytest.mark.usefixtures("leaked_before", "memory")
@pytest.mark.parametrize("kind", ["closed", "scope", "task", "queued tasks", "initializer"])
def test_in_memory_that_django_never_closes(kind: str, conn_max_age: int | None) -> None:
    """A thread that has closed a database in memory has done its part: Django leaves it open."""

    def query() -> None:
        with connections["memory"].cursor() as cursor:
            cursor.execute("SELECT 1")

    def closed() -> None:
        query()
        connections.close_all()

    with contextlib.ExitStack() as stack, assert_no_open_connections(timeout=0.0):
        if kind == "closed":
            stack.enter_context(standing(closed))
        elif kind == "scope":
            stack.enter_context(standing(connection_scope(query)))
        else:
            initializer = query if kind == "initializer" else None
            pool = stack.enter_context(ThreadPoolExecutor(1, initializer=initializer))
            for future in [pool.submit(query) for _ in range(10 if kind == "queued tasks" else 1)]:
                future.result(10)
