"""`assert_no_open_connections` lets pass what is closed, the caller's own, and what was open before."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest
from django.db import connection, connections

from django_executors import (
    ConnectionLeakError,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    testing,
)
from django_executors.lifecycle.leaks import Watch
from django_executors.testing import assert_no_open_connections

from .leaking import WORKERS, checked, collect, count, leaks, message_of, run, standing
from .observers import PostgresObserver
from .test_fork import fork
from .testapp.models import Entry
from .waiting import wait_until


@checked
@pytest.mark.parametrize("alias", ["default", "other", "pooled", "sqlite", "mariadb"])
def test_own_connections(alias: str, request: pytest.FixtureRequest) -> None:
    """The calling thread's own connections do not count."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    with assert_no_open_connections(timeout=0.0):
        Entry.objects.using(alias).count()
        assert len(all_connections()) == 1


@pytest.mark.assert_no_open_connections(False)
def test_another_thread_than_the_main_one() -> None:
    """Its own are those of the thread that the block runs in: there the main thread's are another's."""

    def block() -> str:
        with assert_no_open_connections(timeout=0.0):
            count()
        try:
            return message_of(lambda: (mine.set(), theirs.wait(10)))
        finally:
            connection.close()

    mine, theirs = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(block)
        assert mine.wait(10)
        count()
        theirs.set()
        said = future.result(10)
    assert said.startswith("1 database connection(s)")
    assert "thread=MainThread alias=default " in said


@leaks
def test_opened_before(postgres: PostgresObserver) -> None:
    """What was open before the block does not count, whether used, left, closed or collected in it."""
    with concurrent.futures.ThreadPoolExecutor(1, "standard") as pool, standing(count, "other"):
        pool.submit(count).result(10)
        run(count, "ended")
        assert len(postgres.backends()) == 3
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)
            collect()
            assert wait_until(postgres.backends, lambda pids: len(pids) == 2)
        with assert_no_open_connections(timeout=0.0):
            pool.submit(connection.close)


@checked
@pytest.mark.parametrize("alias", ["default", "other", "sqlite", "mariadb"])
def test_pool(alias: str, conn_max_age: int | None, request: pytest.FixtureRequest) -> None:
    """Tasks on this library's pool pass with no patience at all, whether others are queued or not."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    entries = Entry.objects.using(alias)
    with assert_no_open_connections(timeout=0.0):
        pool = ThreadPoolExecutor(WORKERS)
        futures = [pool.submit(entries.count) for _ in range(10 * WORKERS)]
        assert [future.result(10) for future in futures] == [0] * (10 * WORKERS)
    with assert_no_open_connections(timeout=0.0):
        assert pool.submit(entries.count).result(10) == 0


@checked
def test_callbacks_and_initializers(conn_max_age: int | None) -> None:
    """A callback that uses the ORM passes a moment later than its task's future; so do initializers."""
    with assert_no_open_connections():
        pool = ThreadPoolExecutor(WORKERS, initializer=count)
        for _ in range(3 * WORKERS):
            future = pool.submit(int)
            future.add_done_callback(lambda _: count())
        future.result(10)


@checked
@pytest.mark.parametrize("alias", ["default", "sqlite", "mariadb"])
def test_thread_that_closes(alias: str, request: pytest.FixtureRequest) -> None:
    """A thread that closes what it opened passes, on every database."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def target() -> None:
        Entry.objects.using(alias).count()
        connections.close_all()

    with assert_no_open_connections(timeout=0.0):
        run(target)
        with standing(connection_scope(count)):
            pass


@checked
@pytest.mark.usefixtures("watch_every_thread")
def test_with_the_app() -> None:
    """With the app installed threads close at their ends, and a thread that is ending is waited for."""
    with assert_no_open_connections():
        run(count)


@checked
def test_thread_about_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again, up to its timeout, before it fails."""
    looked = threading.Event()

    class Seen(Watch):
        def leaks(self) -> list[str]:
            found = super().leaks()
            looked.set()
            return found

    def target() -> None:
        count()
        done.set()
        looked.wait(30)
        connection.close()

    monkeypatch.setattr(testing, "Watch", Seen)
    done, thread = threading.Event(), threading.Thread(target=target)
    with assert_no_open_connections(timeout=30.0):
        thread.start()
        assert done.wait(10)
    assert looked.is_set()
    thread.join(10)


@checked
def test_copy_of_the_calling_thread() -> None:
    """A wrapper that the calling thread has made by `copy()` is its own, wherever it connects."""
    lent: Any = connection.copy()
    lent.inc_thread_sharing()
    with assert_no_open_connections(timeout=0.0):
        run(lent.ensure_connection)
    assert lent.connection is not None
    lent.close()


@leaks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child() -> None:
    """A forked child that runs a block of its own does not count what the parent has open."""

    def child() -> None:
        with assert_no_open_connections(timeout=0.0):
            ThreadPoolExecutor(1).submit(int).result(10)
        assert testing.ConnectionLeakError is ConnectionLeakError

    with standing(count), assert_no_open_connections(timeout=0.0):
        count()
        assert fork(child) == (0, "")
    connection.close()
