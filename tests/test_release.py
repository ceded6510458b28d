"""A task lets go before its future resolves, however it ended: counted on the server, collector off."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg
import pytest
from django.db import close_old_connections, connection, connections, transaction

from django_executors import ThreadPoolExecutor, all_connections

from .observers import MariaDBObserver, PostgresObserver
from .testapp.models import Entry

pytestmark = [pytest.mark.usefixtures("collector_off", "conn_max_age")]

WORKERS = 8


def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


def query_together(barrier: threading.Barrier, *aliases: str) -> None:
    """Query, then wait until every worker has: all of them hold a connection at once."""
    for alias in aliases:
        Entry.objects.using(alias).count()
    barrier.wait(10)


@pytest.mark.parametrize("alias", ["default", "sqlite", "mariadb"])
def test_full_house(alias: str, request: pytest.FixtureRequest, postgres: PostgresObserver) -> None:
    """N tasks on N workers hold N connections; when every result is there, none is left."""
    if alias == "mariadb":
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")
    held: list[int] = []
    barrier = threading.Barrier(WORKERS, action=lambda: held.append(len(all_connections())))
    pool = ThreadPoolExecutor(WORKERS)
    for future in [pool.submit(query_together, barrier, alias) for _ in range(WORKERS)]:
        future.result(10)
    assert held == [WORKERS]
    assert all_connections() == ()
    assert not postgres.left()
    if alias == "mariadb":
        assert not mariadb.left()


def test_two_aliases(postgres: PostgresObserver) -> None:
    """Every alias that a task opened is closed."""
    barrier = threading.Barrier(WORKERS)
    pool = ThreadPoolExecutor(WORKERS)
    for future in [pool.submit(query_together, barrier, "default", "other") for _ in range(WORKERS)]:
        future.result(10)
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


def test_alias_that_leaves_the_settings(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """An alias that is gone from the settings when the task ends is closed like the others."""
    monkeypatch.setitem(connections.settings, "passing", connections.settings["other"].copy())

    def task() -> None:
        Entry.objects.using("passing").count()
        assert postgres.backends("other")
        del connections.settings["passing"]

    ThreadPoolExecutor(1).submit(task).result(10)
    assert all_connections() == ()
    assert not postgres.left("other")


def raises() -> None:
    Entry.objects.count()
    raise LookupError("of the task")


def exits() -> None:
    Entry.objects.count()
    raise SystemExit(3)


def interrupted() -> None:
    Entry.objects.count()
    raise KeyboardInterrupt


def autocommit_off() -> None:
    transaction.set_autocommit(False)
    Entry.objects.create(name="not committed")


def raw_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    Entry.objects.create(name="not committed")


def failed_query_in_raw_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 / 0")


suspended: list[Generator[None, None, None]] = []


@pytest.fixture(autouse=True)
def closed_generators() -> Iterator[None]:
    """Close here what a task has suspended: Django's Atomic then opens a connection of this thread."""
    yield
    while suspended:
        suspended.pop().close()
    connection.close()


def half_an_atomic() -> Generator[None, None, None]:
    with transaction.atomic():
        Entry.objects.create(name="not committed")
        yield


def unbalanced_atomic() -> None:
    suspended.append(half_an_atomic())
    next(suspended[-1])


def unbalanced_atomic_that_closes() -> None:
    unbalanced_atomic()
    connection.close()


def unbalanced_atomic_that_closes_old_connections() -> None:
    unbalanced_atomic()
    close_old_connections()


def open_pipeline() -> Any:
    connection.ensure_connection()
    pipeline = connection.connection.pipeline()
    pipeline.__enter__()
    return pipeline


def closed_in_atomic() -> None:
    with transaction.atomic():
        Entry.objects.count()
        connection.close()


def killed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


ENDINGS: dict[Callable[[], object], type[BaseException] | None] = {
    raises: LookupError,
    exits: SystemExit,
    interrupted: KeyboardInterrupt,
    autocommit_off: None,
    raw_begin: None,
    failed_query_in_raw_begin: Exception,
    unbalanced_atomic: None,
    unbalanced_atomic_that_closes: None,
    unbalanced_atomic_that_closes_old_connections: None,
    open_pipeline: None,
    closed_in_atomic: None,
    killed: Exception,
}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_endings(ending: Callable[[], object], postgres: PostgresObserver) -> None:
    """However a task ends, nothing is left, its outcome stays, and the worker serves the next one."""
    pool = ThreadPoolExecutor(1)
    for _ in range(3):
        future = pool.submit(ending)
        error = future.exception(10)
        expected = ENDINGS[ending]
        assert error is None if expected is None else isinstance(error, expected)
        assert all_connections() == ()
        assert not postgres.left()
        assert pool.submit(Entry.objects.create, name="of the next task").result(10).pk
        assert not Entry.objects.filter(name="not committed").exists()
        connection.close()
        assert all_connections() == ()
    assert Entry.objects.filter(name="of the next task").count() == 3


def test_cancelled_before_it_starts(postgres: PostgresObserver) -> None:
    """A cancelled task stays cancelled and opens nothing; the one before it lets go."""
    started, go_on = threading.Event(), threading.Event()

    def first() -> None:
        Entry.objects.count()
        started.set()
        go_on.wait(10)

    pool = ThreadPoolExecutor(1)
    running, cancelled = pool.submit(first), pool.submit(Entry.objects.count)
    assert started.wait(10)
    assert cancelled.cancel()
    go_on.set()
    running.result(10)
    assert cancelled.cancelled()
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert all_connections() == ()
    assert not postgres.left()


def test_caller_timed_out(postgres: PostgresObserver) -> None:
    """A task whose caller has given up lets go all the same."""
    go_on = threading.Event()

    def task() -> None:
        Entry.objects.count()
        go_on.wait(10)

    future = ThreadPoolExecutor(1).submit(task)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)
    go_on.set()
    future.result(10)
    assert all_connections() == ()
    assert not postgres.left()


def test_nothing_of_a_pipeline_survives() -> None:
    """The next task has a connection in its ordinary state."""
    pool = ThreadPoolExecutor(1)
    pool.submit(open_pipeline).result(10)

    def status() -> psycopg.pq.PipelineStatus:
        connection.ensure_connection()
        found: psycopg.pq.PipelineStatus = connection.connection.info.pipeline_status
        return found

    assert pool.submit(status).result(10) == psycopg.pq.PipelineStatus.OFF
