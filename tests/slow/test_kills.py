"""A server that ends every connection, between two tasks or during one, costs no later task."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from django.db import DatabaseError, connection, connections, transaction

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

at_all_settings = pytest.mark.usefixtures("conn_max_age", "health_checks")

WORKERS = 4


@pytest.fixture(params=[False, True], ids=["unchecked", "checked"])
def health_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with CONN_HEALTH_CHECKS off and on."""
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", request.param)


def query(barrier: threading.Barrier) -> int:
    barrier.wait(10)
    return Entry.objects.count()


def serve_all(pool: ThreadPoolExecutor) -> None:
    """Have every worker of the pool run one query, at once."""
    barrier = threading.Barrier(WORKERS)
    for future in [pool.submit(query, barrier) for _ in range(WORKERS)]:
        assert future.result(20) == 0


@at_all_settings
def test_between_two_tasks(postgres: PostgresObserver) -> None:
    """Every backend is terminated between two tasks: each worker's next task succeeds."""
    pool = ThreadPoolExecutor(WORKERS)
    for _ in range(3):
        serve_all(pool)
        postgres.kill()
    serve_all(pool)
    assert all_connections() == ()
    assert not postgres.left()


@at_all_settings
def test_between_two_tasks_with_work_queued(postgres: PostgresObserver) -> None:
    """The task that was queued behind one whose backend is killed at its very end succeeds."""
    idle, killed = threading.Event(), threading.Event()

    def first() -> int:
        found = Entry.objects.count()
        idle.set()
        assert killed.wait(10)
        return found

    pool = ThreadPoolExecutor(1)
    futures = [pool.submit(first), *(pool.submit(Entry.objects.count) for _ in range(3))]
    assert idle.wait(10)
    postgres.kill()
    killed.set()
    assert [future.result(20) for future in futures] == [0, 0, 0, 0]
    assert all_connections() == ()
    assert not postgres.left()


@at_all_settings
def test_during_a_task(postgres: PostgresObserver) -> None:
    """Tasks whose backends are terminated get Django's own error, and the next ones succeed."""
    pool = ThreadPoolExecutor(WORKERS)
    holding, killed = threading.Barrier(WORKERS + 1), threading.Event()

    def task() -> int:
        Entry.objects.count()
        holding.wait(10)
        assert killed.wait(10)
        return Entry.objects.count()

    for _ in range(2):
        killed.clear()
        futures = [pool.submit(task) for _ in range(WORKERS)]
        holding.wait(10)
        postgres.kill()
        killed.set()
        for future in futures:
            assert isinstance(future.exception(20), DatabaseError)
        serve_all(pool)
    assert all_connections() == ()
    assert not postgres.left()


@at_all_settings
def test_during_a_transaction(postgres: PostgresObserver) -> None:
    """A backend that is terminated inside `atomic` leaves no trace of it on the worker."""

    def task() -> None:
        with transaction.atomic():
            Entry.objects.create(name="lost")
            postgres.kill()
            Entry.objects.create(name="lost")

    pool = ThreadPoolExecutor(1)
    for _ in range(3):
        assert isinstance(pool.submit(task).exception(20), DatabaseError)
        assert pool.submit(Entry.objects.count).result(20) == 0
    assert all_connections() == ()
    assert not postgres.left()


@at_all_settings
def test_swallowed_by_the_task(postgres: PostgresObserver) -> None:
    """A task that swallows the error of a killed backend hands no dead connection to the next one."""

    def task() -> None:
        Entry.objects.count()
        postgres.kill()
        try:
            Entry.objects.count()
        except DatabaseError:
            return
        raise AssertionError("the backend was alive")

    pool = ThreadPoolExecutor(1)
    for _ in range(3):
        pool.submit(task).result(20)
        assert pool.submit(Entry.objects.count).result(20) == 0
    assert not postgres.left()


@pytest.fixture
def pool_with_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Django's pool, with the health checks that keep it from lending dead connections."""
    connections["pooled"].close_pool()
    monkeypatch.setitem(connections.settings["pooled"], "CONN_HEALTH_CHECKS", True)
    yield
    connections["pooled"].close_pool()


@pytest.mark.usefixtures("pool_with_checks")
def test_django_pool(postgres: PostgresObserver) -> None:
    """With Django's pool and its health checks, the tasks after a kill succeed."""
    count = Entry.objects.using("pooled").count
    pool = ThreadPoolExecutor(WORKERS)
    for _ in range(2):
        for future in [pool.submit(count) for _ in range(4 * WORKERS)]:
            assert future.result(20) == 0
        postgres.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'pooled'"
        )
    for future in [pool.submit(count) for _ in range(4 * WORKERS)]:
        assert future.result(20) == 0
    assert all_connections() == ()


def test_the_callers_connection_is_not_replaced(postgres: PostgresObserver) -> None:
    """The caller's own killed connection is the caller's to mend: no worker touches its wrapper."""
    connection.ensure_connection()
    mine = connection.connection
    postgres.kill()
    assert ThreadPoolExecutor(1).submit(Entry.objects.count).result(20) == 0
    assert connection.connection is mine
