"""A worker keeps its connection while more tasks are queued than workers keep, and only then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import override_settings

from django_executors import ThreadPoolExecutor, all_connections

from .keeping import CountedResets, backend, held_up, queued, registered, results
from .observers import MariaDBObserver, PostgresObserver
from .test_fresh_sessions import resets_are_on  # noqa: F401
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "resets_are_on")

WORKERS = 8


@pytest.fixture
def resets() -> Iterator[CountedResets]:
    """The resets that were asked for."""
    with registered(CountedResets()) as counted:
        yield counted


@pytest.fixture
def kept_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    for alias in connections:
        if alias != "pooled":
            monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", 60)


def when_it_resolves(future: Future[Any]) -> Future[Any]:
    """Return what is open at the moment when this future resolves: in its worker, before it goes on."""
    found: Future[Any] = Future()
    future.add_done_callback(lambda _: found.set_result(all_connections()))
    return found


@pytest.mark.parametrize(
    ("alias", "age"),
    [("default", 0), ("default", 60), ("default", None), ("mariadb", 60), ("sqlite", 60)],
)
def test_reuse(
    alias: str, age: int | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 queued tasks on 4 workers use 4 backends, until fewer tasks than workers are left."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", age)
    pool = ThreadPoolExecutor(4)
    used = results(queued(pool, *[lambda: backend(alias)] * 200, workers=4))
    assert len(set(used[:-8])) <= 4
    assert len(set(used)) <= 8
    assert wait_until(all_connections, lambda found: not found) == ()


def test_resets_a_task(resets: CountedResets) -> None:
    """200 queued tasks on 4 workers cost at most 1.2 resets a task."""
    tasks = 200
    results(queued(ThreadPoolExecutor(4), *[backend] * tasks, workers=4))
    assert 0.9 * tasks < len(resets.begun) <= 1.2 * tasks
    assert len(resets.finished) <= len(resets.begun)


@pytest.mark.parametrize("age", [0, 60])
def test_as_many_keep_as_tasks_are_queued(
    age: int, monkeypatch: pytest.MonkeyPatch, resets: CountedResets
) -> None:
    """Of 8 workers that end together with 3 tasks queued, at most 3 keep; with all done, none does."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", age)
    for _ in range(5):
        resets.begun.clear()
        pool = ThreadPoolExecutor(WORKERS)
        go_on, together = threading.Event(), threading.Barrier(WORKERS + 1)

        def first(together: threading.Barrier = together) -> None:
            Entry.objects.count()
            together.wait(10)

        def behind(go_on: threading.Event = go_on) -> int:
            go_on.wait(10)
            return Entry.objects.count()

        ahead = [pool.submit(first) for _ in range(WORKERS)]
        last = [pool.submit(behind) for _ in range(3)]
        assert len(wait_until(all_connections, lambda found: len(found) == WORKERS)) == WORKERS
        together.wait(10)
        results(ahead)
        assert len(all_connections()) <= 3
        assert len(resets.begun) <= 3
        go_on.set()
        assert results(last) == [0, 0, 0]
        assert wait_until(all_connections, lambda found: not found) == ()


def test_a_keeper_that_has_its_task() -> None:
    """A worker that runs what it kept for reserves nothing: the other keeps for what is queued."""
    go_on, together = threading.Event(), threading.Barrier(2)

    def first() -> None:
        Entry.objects.count()
        together.wait(10)

    pool = ThreadPoolExecutor(2)
    tasks = [first, first, lambda: go_on.wait(10), backend, backend, backend]
    *_, one, two, three = queued(pool, *tasks, workers=2)
    used = results([one, two, three])
    go_on.set()
    assert len(set(used)) == 1


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("tasks", [WORKERS, 5 * WORKERS + 1, 200])
def test_all_let_go(tasks: int, postgres: PostgresObserver) -> None:
    """With more tasks than workers, none keeps a connection for long after the last result."""
    pool = ThreadPoolExecutor(WORKERS)
    for _ in range(3):
        assert results([pool.submit(Entry.objects.count) for _ in range(tasks)]) == [0] * tasks
        assert wait_until(all_connections, lambda found: not found) == ()
        assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("before", [1, 2, 50])
def test_the_last_task_of_one_worker(before: int, postgres: PostgresObserver) -> None:
    """When the last result of a single worker is there, nothing is left, however many came before."""
    pool = ThreadPoolExecutor(1)
    with held_up(pool):
        futures = [pool.submit(Entry.objects.count) for _ in range(before)]
        left = when_it_resolves(futures[-1])
    assert results(futures) == [0] * before
    assert left.result(10) == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("shutdowns", [1, 3])
def test_a_pool_being_shut_down(shutdowns: int, resets: CountedResets) -> None:
    """What wakes workers up at shutdown is no task: the last one lets go before its future resolves."""
    for tasks in (1, 3):
        resets.begun.clear()
        pool = ThreadPoolExecutor(1)
        with held_up(pool):
            futures = [pool.submit(Entry.objects.count) for _ in range(tasks)]
            left = when_it_resolves(futures[-1])
            for _ in range(shutdowns):
                pool.shutdown(wait=False)
        assert left.result(10) == ()
        assert len(resets.begun) <= tasks - 1
        assert results(futures) == [0] * tasks


@pytest.mark.usefixtures("conn_max_age")
def test_tasks_that_were_cancelled(postgres: PostgresObserver) -> None:
    """A worker that kept for a task which was then cancelled lets go when it finds nothing else."""
    pool = ThreadPoolExecutor(1)
    with held_up(pool):
        first = pool.submit(Entry.objects.count)
        cancelled = [pool.submit(Entry.objects.count) for _ in range(3)]
        assert all(future.cancel() for future in cancelled)
    assert first.result(10) == 0
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


@pytest.mark.usefixtures("kept_for_a_minute")
def test_open_transaction_on_mariadb(mariadb: MariaDBObserver) -> None:
    """A transaction begun by hand, which its driver cannot see, is rolled back before the next task."""

    def begins() -> object:
        with connections["mariadb"].cursor() as cursor:
            cursor.execute("BEGIN")
        Entry.objects.using("mariadb").create(name="not committed")
        return backend("mariadb")

    def looks() -> tuple[object, int]:
        return backend("mariadb"), Entry.objects.using("mariadb").count()

    pool = ThreadPoolExecutor(1)
    first, second, third = results(queued(pool, begins, looks, looks))
    assert second == third == (first, 0)
    assert not mariadb.left()
    assert not Entry.objects.using("mariadb").exists()


def logs_queries() -> int:
    connection.force_debug_cursor = True
    Entry.objects.count()
    return len(connection.queries)


def query_log() -> int:
    connection.ensure_connection()
    return len([query for query in connection.queries if "testapp_entry" in query["sql"]])


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("debug", [False, True])
def test_query_log(debug: bool) -> None:
    """The queries of one task are not in the next one's log."""
    with override_settings(DEBUG=debug):
        logged, *next_ones = results(queued(ThreadPoolExecutor(1), logs_queries, query_log, query_log))
    assert logged
    assert next_ones == [0, 0]


def test_tasks_without_queries(resets: CountedResets) -> None:
    """A task that makes no query costs no reset, and opens nothing."""
    seen: list[int] = []
    idle: Callable[[], Any] = lambda: seen.append(len(all_connections()))  # noqa: E731
    pool = ThreadPoolExecutor(1)
    results(queued(pool, *[idle] * 10))
    assert seen == [0] * 10
    results(queued(pool, Entry.objects.count, *[idle] * 10, Entry.objects.count))
    assert len(resets.begun) == 1
    assert all_connections() == ()


@pytest.mark.usefixtures("conn_max_age")
def test_callbacks_between_tasks(postgres: PostgresObserver) -> None:
    """What done-callbacks of queued tasks open is let go of too."""

    def writes() -> None:
        with transaction.atomic():
            Entry.objects.create(name="written")

    pool, counts = ThreadPoolExecutor(1), list[int]()
    with held_up(pool):
        futures = [pool.submit(writes) for _ in range(3)]
        for future in futures:
            future.add_done_callback(lambda _: counts.append(Entry.objects.count()))
    results(futures)
    assert wait_until(lambda: counts, lambda found: len(found) == 3) == [1, 2, 3]
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()
