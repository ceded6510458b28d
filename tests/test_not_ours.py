"""A connection that a worker did not open is never touched: a caller's, a test's, one lent to it."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import TestCase

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)

from .observers import PostgresObserver
from .running_cases import run_case
from .test_release import backend_pid
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "conn_max_age")


def count() -> int:
    return Entry.objects.count()


class Abandoned(Exception):
    """Leaves an `atomic` block."""


def test_submitted_inside_atomic(postgres: PostgresObserver) -> None:
    """The worker does not see the caller's row, and the caller's transaction rolls back as it should."""
    pool = ThreadPoolExecutor(2)
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        mine, pid = connection.connection, backend_pid()
        assert [pool.submit(count).result(10) for _ in range(4)] == [0, 0, 0, 0]
        assert pool.submit(Entry.objects.create, name="of the worker").result(10).pk
        assert connection.connection is mine
        assert backend_pid() == pid
        assert connection.in_atomic_block
        assert set(Entry.objects.values_list("name", flat=True)) == {"of the caller", "of the worker"}
        assert [found.thread_ident for found in all_connections()] == [threading.get_ident()]
        raise Abandoned
    assert list(Entry.objects.values_list("name", flat=True)) == ["of the worker"]
    assert postgres.settled(1) == {pid}


def test_submitted_inside_atomic_and_committed() -> None:
    """The caller's transaction commits after tasks and the pool itself have come and gone."""
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: count(), range(4)))
        with transaction.atomic():
            Entry.objects.create(name="in a savepoint")
    assert Entry.objects.count() == 2


def test_in_a_test_case() -> None:
    """A TestCase keeps its connection and its transaction, whatever tasks its tests run."""
    pids: list[int] = []

    class Case(TestCase):
        databases = {"default"}  # noqa: RUF012

        @classmethod
        def setUpTestData(cls) -> None:
            Entry.objects.create(name="of the class")
            pids.append(backend_pid())

        def test_submit(self) -> None:
            with ThreadPoolExecutor(2) as pool:
                Entry.objects.create(name="of the test")
                for future in [pool.submit(count) for _ in range(4)]:
                    assert future.result(10) == 0
                assert Entry.objects.count() == 2
                assert connection.in_atomic_block
            pids.append(backend_pid())

        def test_again(self) -> None:
            ThreadPoolExecutor(1).submit(count).result(10)
            assert Entry.objects.count() == 1
            pids.append(backend_pid())

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
    assert len(pids) == 3
    assert len(set(pids)) == 1
    assert Entry.objects.count() == 0


def test_callback_in_the_callers_thread() -> None:
    """A done-callback that runs in the caller's thread closes nothing there."""
    future = ThreadPoolExecutor(1).submit(count)
    concurrent.futures.wait([future], 10)
    ran_in: list[int] = []

    def callback(_: object) -> None:
        Entry.objects.create(name="of the callback")
        ran_in.append(threading.get_ident())

    with pytest.raises(Abandoned), transaction.atomic():
        pid = backend_pid()
        future.add_done_callback(callback)
        assert ran_in == [threading.get_ident()]
        assert backend_pid() == pid
        assert connection.in_atomic_block
        raise Abandoned
    assert backend_pid() == pid
    assert Entry.objects.count() == 0


def test_cancelling_in_the_callers_thread() -> None:
    """`shutdown(cancel_futures=True)`, which drains the queue in the caller's thread, closes nothing."""
    go_on = threading.Event()
    pool = ThreadPoolExecutor(1)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        pool.submit(go_on.wait, 10)
        waiting = [pool.submit(count) for _ in range(3)]
        for future in waiting:
            future.add_done_callback(lambda _: count())
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert backend_pid() == pid
        assert connection.in_atomic_block
        go_on.set()
    assert Entry.objects.count() == 1


def with_lent(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection, as Django's LiveServerThread does."""
    connections["default"] = lent
    try:
        return fn()
    finally:
        del connections["default"]


def leaving_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection and leave it registered in this thread."""
    connections["default"] = lent
    return fn()


def raising_on_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection and end by an exception that may mean an interrupted query."""
    connections["default"] = lent
    raise KeyboardInterrupt(fn())


def scoped_on_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection inside a scope of its own, which gives back what it can."""
    with connection_scope():
        connections["default"] = lent
        release_connections()
        return fn()


USES = [with_lent, leaving_it, raising_on_it, scoped_on_it]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("where", ["worker", "thread", "guarded thread"])
def test_lent(use: Callable[..., Any], where: str, lent: Any, request: pytest.FixtureRequest) -> None:
    """A lent connection outlives the task and the thread that it was lent to, in its transaction."""
    if where == "guarded thread":
        request.getfixturevalue("watch_every_thread")
    executor: concurrent.futures.Executor
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the lender")
        mine, pid = lent.connection, backend_pid()
        executor = (
            ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
        )
        with executor:
            for _ in range(2):
                future = executor.submit(use, lent, lambda: (count(), backend_pid()))
                error = future.exception(10)
                seen = future.result() if error is None else error.args[0]
                assert seen == (1, pid)
        assert lent.connection is mine
        assert backend_pid() == pid
        assert lent.in_atomic_block
        raise Abandoned
    assert backend_pid() == pid
    assert Entry.objects.count() == 0


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("where", ["worker", "guarded thread"])
def test_lent_unopened(where: str, lent: Any) -> None:
    """A lent connection that the borrower happens to connect first is the lender's all the same."""
    lent.close()
    executor = ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
    with executor:
        pid = executor.submit(leaving_it, lent, backend_pid).result(10)
    (found,) = all_connections()
    assert (found.backend_pid, found.thread_ident) == (pid, threading.get_ident())
    assert backend_pid() == pid


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("where", ["worker", "guarded thread"])
def test_lent_copy_unopened(where: str) -> None:
    """That holds for a wrapper that did not come from the handler too."""
    lent: Any = connection.copy()
    lent.inc_thread_sharing()
    executor = ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
    with executor:
        executor.submit(leaving_it, lent, backend_pid).result(10)
    try:
        assert lent.connection is not None
    finally:
        lent.close()


def test_own_and_lent_at_once(lent: Any, postgres: PostgresObserver) -> None:
    """A worker with its own connection on one alias and a lent one on another closes its own alone."""
    lent.ensure_connection()

    def task() -> int:
        Entry.objects.using("other").count()
        return int(leaving_it(lent, backend_pid))

    pid = ThreadPoolExecutor(1).submit(task).result(10)
    assert pid == backend_pid()
    assert [found.alias for found in all_connections()] == ["default"]
    assert not postgres.left("other")


def test_an_own_connection_is_closed_though_a_lent_one_took_its_place(
    lent: Any, postgres: PostgresObserver
) -> None:
    """What a worker opened before a lent wrapper took its place is closed; the lent one is not."""
    lent.ensure_connection()

    def task() -> int:
        count()
        return int(leaving_it(lent, backend_pid))

    pid = ThreadPoolExecutor(1).submit(task).result(10)
    assert backend_pid() == pid
    connection.close()
    assert not postgres.left()


def test_called_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `submit` in the standard class's place that calls at once touches nothing of the caller."""

    def at_once(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", at_once)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        assert ThreadPoolExecutor(1).submit(Entry.objects.count).result(10) == 1
        assert connection.in_atomic_block
    assert Entry.objects.count() == 1
