"""A server that ends every connection during a task costs no later task."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import DatabaseError, connection, connections, transaction

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.kept import queued, results
from tests.support.observers import PostgresObserver

WORKERS = 4

Kill = Callable[[], None]


def in_a_query(kill: Kill) -> None:
    Entry.objects.count()
    kill()
    Entry.objects.count()


def in_a_transaction(kill: Kill) -> None:
    with transaction.atomic():
        Entry.objects.create(name="lost")
        kill()
        Entry.objects.create(name="lost")


def swallowed(kill: Kill) -> None:
    with pytest.raises(DatabaseError):
        in_a_query(kill)


@pytest.mark.parametrize(
    ("conn_max_age", "health_checks"),
    [(0, False), (600, True), (None, False)],
    indirect=["conn_max_age"],
)
@pytest.mark.parametrize("task", [in_a_query, in_a_transaction, swallowed])
def test_during_a_task(
    task: Callable[[Kill], None],
    conn_max_age: int | None,
    health_checks: bool,
    postgres: PostgresObserver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tasks whose backends are terminated get Django's own error, and the next ones succeed."""
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", health_checks)
    # Once all of them hold a connection and none is in a query, all backends are killed.
    together = threading.Barrier(WORKERS, action=postgres.kill)

    def killed() -> None:
        task(lambda: together.wait(20))

    pool = ThreadPoolExecutor(WORKERS)
    futures = queued(pool, *[killed] * WORKERS, *[Entry.objects.count] * WORKERS, workers=WORKERS)
    for future in futures[:WORKERS]:
        error = future.exception(20)
        assert error is None if task is swallowed else isinstance(error, DatabaseError)
    assert results(futures[WORKERS:]) == [0] * WORKERS
    assert all_connections() == ()
    assert not postgres.left()


def test_django_pool(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Django's pool and its health checks, the tasks after a kill succeed."""
    connections["pooled"].close_pool()
    monkeypatch.setitem(connections.settings["pooled"], "CONN_HEALTH_CHECKS", True)
    pool = ThreadPoolExecutor(WORKERS)
    futures = [pool.submit(Entry.objects.using("pooled").count) for _ in range(4 * WORKERS)]
    assert results(futures) == [0] * 4 * WORKERS
    postgres.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'pooled'"
    )
    assert pool.submit(Entry.objects.using("pooled").count).result(20) == 0
    assert all_connections() == ()
    connections["pooled"].close_pool()


def test_the_callers_connection_is_not_replaced(postgres: PostgresObserver) -> None:
    """The caller's own killed connection is the caller's to mend: no worker touches its wrapper."""
    connection.ensure_connection()
    mine = connection.connection
    postgres.kill()
    assert ThreadPoolExecutor(1).submit(Entry.objects.count).result(20) == 0
    assert connection.connection is mine
