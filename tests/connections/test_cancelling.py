"""`shutdown(timeout=…, cancel_queries=True)`: nothing goes on on the server for nobody."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test import override_settings

from django_executors import (
    ImmediateExecutor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    executors,
)
from django_executors.connections import cancelling
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

#: Longer than any test.
FOR_EVER = {
    "default": "SELECT pg_sleep(300)",
    "mariadb": "SELECT SLEEP(300)",
    "sqlite": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e12) "
        "SELECT count(*) FROM n"
    ),
}


def sleep(alias: str = "default", begun: threading.Event | None = None) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()
        if begun is not None:
            begun.set()
        cursor.execute(FOR_EVER[alias])
        cursor.fetchall()


def asleep(postgres: PostgresObserver) -> int:
    (row,) = postgres.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep%%' AND state = 'active' "
        "AND pid <> pg_backend_pid()"
    )
    return int(row[0])


def test_postgres(postgres: PostgresObserver) -> None:
    """Their tasks get an error, what waits is cancelled, and nothing is left on the server."""
    pool = ThreadPoolExecutor(2)
    running = [pool.submit(sleep) for _ in range(2)]
    waiting = pool.submit(sleep)
    assert wait_until(lambda: asleep(postgres) == 2)
    pool.shutdown(timeout=0.0, cancel_queries=True)
    for future in running:
        assert isinstance(future.exception(20), OperationalError)
    assert waiting.cancelled()
    assert not postgres.left()
    assert asleep(postgres) == 0


@pytest.mark.parametrize("alias", ["sqlite"])
def test_sqlite(alias: str) -> None:
    ends_with_an_error(alias)


def test_mariadb(mariadb: Any) -> None:
    ends_with_an_error("mariadb")
    assert not mariadb.left()


def ends_with_an_error(alias: str) -> None:
    begun = threading.Event()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sleep, alias, begun)
    assert begun.wait(20)
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert isinstance(future.exception(20), OperationalError)


def test_several_queries(postgres: PostgresObserver) -> None:
    """A task that goes on after the first error meets the next one."""
    errors: list[BaseException] = []

    def task() -> None:
        for _ in range(3):
            try:
                sleep()
            except OperationalError as error:
                errors.append(error)

    pool = ThreadPoolExecutor(1)
    future = pool.submit(task)
    assert wait_until(lambda: asleep(postgres) == 1)
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert future.result(20) is None
    assert len(errors) == 3


def test_a_tasks_coroutine(postgres: PostgresObserver) -> None:
    """The thread in which its ORM calls run is the task's."""

    async def main() -> None:
        await Entry.objects.acount()
        from asgiref.sync import sync_to_async

        await sync_to_async(sleep)()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: asyncio.run(main()))
    assert wait_until(lambda: asleep(postgres) == 1)
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert isinstance(future.exception(20), OperationalError)


def test_within_the_deadline(gate: Gate) -> None:
    """What ends in time is not disturbed."""
    pool = ThreadPoolExecutor(1)
    futures = [pool.submit(Entry.objects.count) for _ in range(5)]
    pool.shutdown(timeout=30, cancel_queries=True)
    assert [each.result(0) for each in futures] == [0] * 5


def test_without_it(postgres: PostgresObserver) -> None:
    """They go on."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sleep)
    assert wait_until(lambda: asleep(postgres) == 1)
    pool.shutdown(timeout=0.0)
    assert asleep(postgres) == 1
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert isinstance(future.exception(20), OperationalError)


def test_djangos_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of it may be somebody else's by then: its query goes on to its end."""
    monkeypatch.setitem(FOR_EVER, "pooled", "SELECT pg_sleep(1)")
    begun = threading.Event()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(sleep, "pooled", begun)
    assert begun.wait(20)
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert future.result(20) is None


@pytest.mark.parametrize("alias", ["default", "mariadb"])
def test_a_server_that_does_not_answer(
    alias: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The deadline is one for all connections; the tasks are named as running."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    entry = connections.settings[alias]
    with Proxy(entry["HOST"], int(entry["PORT"])) as proxy:
        address = {"HOST": "127.0.0.1", "PORT": str(proxy.port)}
        monkeypatch.setitem(connections.settings, "stalled", entry | address)
        monkeypatch.setitem(FOR_EVER, "stalled", FOR_EVER[alias].replace("300", "1"))
        begun = [threading.Event() for _ in range(4)]
        pool = ThreadPoolExecutor(4)
        futures = [pool.submit(sleep, "stalled", each) for each in begun]
        assert all(each.wait(20) for each in begun)
        proxy.stall()
        asked: list[float] = []
        real = cancelling._cancel

        def cancel(wrapper: Any, driver: Any, backend_pid: Any, seconds: float) -> None:
            asked.append(seconds)
            real(wrapper, driver, backend_pid, seconds)

        monkeypatch.setattr(cancelling, "_cancel", cancel)
        pool.shutdown(timeout=0.0, cancel_queries=True)
        assert 1 <= len(asked) < 4
        proxy.restore()
        concurrent.futures.wait(futures, 20)
        pool.shutdown()


def test_tasks_without_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a second for tasks that ask no server."""
    asked: list[bool] = []
    real = cancelling.cancel_queries

    def cancel_queries(*args: Any) -> bool:
        asked.append(real(*args))
        return asked[-1]

    monkeypatch.setattr(cancelling, "cancel_queries", cancel_queries)
    gate = Gate()
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    pool.shutdown(timeout=0.0, cancel_queries=True)
    assert asked == [False]
    gate.open()
    pool.shutdown()


def test_the_named_ones(postgres: PostgresObserver) -> None:
    with override_settings(EXECUTORS={"default": {}, "processes": {"BACKEND": PROCESSES}}):
        future = executors["default"].submit(sleep)
        assert executors["processes"].name == "processes"
        assert wait_until(lambda: asleep(postgres) == 1)
        executors.shutdown(timeout=0.0, cancel_queries=True)
        assert isinstance(future.exception(20), OperationalError)


PROCESSES = "django_executors.ProcessPoolExecutor"


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor, ImmediateExecutor])
def test_without_a_timeout(kind: Callable[[], Any]) -> None:
    executor = kind()
    with pytest.raises(ValueError, match="cancel_queries=True is for the end of a timeout"):
        executor.shutdown(cancel_queries=True)
    executor.shutdown()


def test_nobody_elses_query_is_hit(postgres: PostgresObserver, many_switches: None) -> None:
    """While pools end, one after another, no query of other pools, nor of this thread, is cancelled."""
    stop, begun = threading.Event(), threading.Semaphore(0)

    def other() -> int:
        count = 0
        while not stop.is_set():
            Entry.objects.count()
            count += 1
        return count

    def short() -> None:
        Entry.objects.count()
        begun.release()
        while True:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.01)")

    with ThreadPoolExecutor(2, conn_max_idle=5) as others:
        running = [others.submit(other) for _ in range(2)]
        try:
            for _ in range(30):
                pool = ThreadPoolExecutor(3)
                futures = [pool.submit(short) for _ in range(3)]
                assert all(begun.acquire(timeout=20) for _ in futures)
                Entry.objects.count()
                pool.shutdown(timeout=0.0, cancel_queries=True)
                assert all(isinstance(each.exception(20), OperationalError) for each in futures)
        finally:
            stop.set()
        assert all(each.result(20) > 0 for each in running)
    connection.close()
