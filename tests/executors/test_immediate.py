"""A task in its caller's thread: what its future says, and that nothing of it lives on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction

from django_executors import (
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.in_callers_thread import (
    CLOSINGS,
    PLACES,
    Abandoned,
    Close,
    Where,
    close_all,
    close_old,
    close_the_connection,
    fail,
    in_a_callback,
    in_a_failing_task,
    in_a_pool_that_is_inline,
    in_a_task,
    names,
)
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python


def test_runs_at_once_in_the_callers_thread() -> None:
    """`submit` returns a future that is done, and the task has run in the caller's thread."""
    future = ImmediateExecutor().submit(
        lambda *args, **kwargs: (threading.get_ident(), args, kwargs), 1, b=2
    )
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert future.result(0) == (threading.get_ident(), (1,), {"b": 2})
    assert future.exception(0) is None


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_exceptions_stay_in_the_future(kind: type[BaseException]) -> None:
    """A task's exception is the future's, SystemExit too, and the next task runs."""
    executor, error = ImmediateExecutor(), kind("of the task")
    future = executor.submit(fail, error)
    assert future.exception(0) is error
    with pytest.raises(kind, match="of the task"):
        future.result(0)
    assert executor.submit(abs, -1).result(0) == 1


@pytest.mark.parametrize("executor", [ImmediateExecutor, ThreadPoolExecutor])
def test_keyboard_interrupt_is_raised(executor: Callable[[], concurrent.futures.Executor]) -> None:
    """Ctrl-C ends the caller, through tasks in tasks; the executor goes on, if the caller does."""
    pool, outer = executor(), []
    with run_inline():
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            outer.append(pool.submit(lambda: pool.submit(fail, KeyboardInterrupt("Ctrl-C"))))
        assert outer == []
        assert pool.submit(abs, -1).result(0) == 1


def test_a_task_that_is_no_function() -> None:
    """What cannot be called is the future's error, as in the standard pool."""
    assert isinstance(ImmediateExecutor().submit(5).exception(0), TypeError)  # type: ignore[arg-type]


def test_callbacks_run_as_they_are_added() -> None:
    """A done-callback is called at once, with the future, in the caller's thread."""
    called: list[tuple[object, int]] = []
    future = ImmediateExecutor().submit(abs, -1)
    future.add_done_callback(lambda done: called.append((done, threading.get_ident())))
    assert called == [(future, threading.get_ident())]


def test_a_callback_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A callback's exception is logged as the standard class logs it, and the next one is called."""
    called: list[object] = []
    future = ImmediateExecutor().submit(abs, -1)
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future.add_done_callback(lambda _: fail(ValueError("of the callback")))
        future.add_done_callback(called.append)
    (record,) = caplog.records
    assert record.name == "concurrent.futures"
    assert record.getMessage().startswith("exception calling callback for")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "of the callback"
    assert called == [future]


def test_wait_and_as_completed() -> None:
    """`wait` and `as_completed` take its futures, and wait for none."""
    executor = ImmediateExecutor()
    futures = [executor.submit(abs, -1), executor.submit(fail, ValueError())]
    assert concurrent.futures.wait(futures, 0) == (set(futures), set())
    first = concurrent.futures.wait(futures, 0, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert first.not_done == set()
    assert set(concurrent.futures.as_completed(futures, 0)) == set(futures)


def test_map() -> None:
    """`map` runs the calls in order and gives their results in order, also of several iterables."""
    ran: list[int] = []

    def task(base: int, exponent: int) -> int:
        ran.append(base)
        return base**exponent

    results = ImmediateExecutor().map(task, [3, 1, 2], [2, 5, 3], timeout=0, chunksize=2)
    assert ran == [3, 1, 2]
    assert list(results) == [9, 1, 8]


def test_map_raises_where_the_task_did() -> None:
    """`map` raises a task's exception in its place; the tasks behind it have run, as in a pool."""
    ran: list[int] = []

    def task(number: int) -> float:
        ran.append(number)
        return 1 / number

    results = ImmediateExecutor().map(task, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert ran == [1, 2, 0, 4]


def test_tasks_may_submit_tasks() -> None:
    """A task waits for what it has submitted itself, where a pool of one worker would wait for ever."""
    executor = ImmediateExecutor()

    def depth(left: int) -> int:
        return executor.submit(depth, left - 1).result(0) + 1 if left else 0

    assert executor.submit(depth, 20).result(0) == 20
    assert (
        sum(executor.submit(lambda: sum(executor.map(depth, [1, 2, 3]))).result(0) for _ in "ab") == 12
    )


def test_submit_after_shutdown() -> None:
    """After `shutdown` it refuses tasks in the standard class's words, from inside a task too."""
    with ImmediateExecutor() as executor:
        assert executor.submit(abs, -1).result(0) == 1

        def shut_down_and_submit() -> None:
            executor.shutdown(wait=True, cancel_futures=True)
            executor.submit(abs, -1)

        refused = executor.submit(shut_down_and_submit)
    for call in (refused.result, lambda: executor.submit(abs, -1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
            call()


@pytest.mark.parametrize("executor", ["ImmediateExecutor()", "ThreadPoolExecutor(1)"])
def test_works_without_settings(executor: str) -> None:
    """Without settings it runs tasks and callbacks that use no database, and configures nothing."""
    finished = run_python(
        f"""
        from django.conf import settings
        from django_executors import ImmediateExecutor, ThreadPoolExecutor
        from django_executors.testing import run_inline
        with run_inline(), {executor} as executor:
            executor.submit(abs, -1).add_done_callback(lambda future: print(future.result()))
            print(list(executor.map(abs, [-2, -3])))
        assert not settings.configured
        """,
        settings=None,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "1\n[2, 3]\n", "")


def test_under_an_event_loop() -> None:
    """Where a loop runs, a task may be awaited; one that uses the ORM gets Django's own refusal."""

    async def main() -> int:
        executor, loop = ImmediateExecutor(), asyncio.get_running_loop()
        with pytest.raises(SynchronousOnlyOperation):
            await loop.run_in_executor(executor, Entry.objects.count)
        return await asyncio.wrap_future(executor.submit(abs, -1))

    connection.ensure_connection()
    assert asyncio.run(main()) == 1


# No cycle


class Witness:
    """Lives as long as the frame that it is in."""


def witnessed(
    kind: type[BaseException], submit: Callable[..., concurrent.futures.Future[None]]
) -> weakref.ref[Witness]:
    """Have a task fail beside a witness, ask for the result, and let go of everything."""
    references: list[weakref.ref[Witness]] = []

    def task() -> None:
        witness = Witness()
        references.append(weakref.ref(witness))
        raise kind

    with contextlib.suppress(kind):
        submit(task).result(0)  # a name for the future would be a cycle of this frame's own
    (reference,) = references
    return reference


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("inside", ["nothing", "a task", "run_inline"])
def test_no_cycle_holds_an_exception(inside: str, kind: type[BaseException]) -> None:
    """With its future, a task's exception goes, and the frames and their rows with it."""
    executor = ImmediateExecutor()
    if inside == "nothing":
        assert witnessed(kind, executor.submit)() is None
    elif inside == "a task":
        outer = executor.submit(witnessed, kind, executor.submit)
        assert outer.result(0)() is None
    else:
        with run_inline():
            assert witnessed(kind, ThreadPoolExecutor(1, initializer=int).submit)() is None


def test_no_cycle_holds_an_exception_of_map() -> None:
    """The same for an exception that `map` raises."""
    references: list[weakref.ref[Witness]] = []

    def task(number: int) -> None:
        witness = Witness()
        references.append(weakref.ref(witness))
        assert number != 1

    with contextlib.suppress(AssertionError):
        list(ImmediateExecutor().map(task, range(3)))
    assert [reference() for reference in references] == [None, None, None]


# A task in its caller's thread ends no transaction of the caller's, and closes nothing of it.


@pytest.fixture(params=["default", "pooled", "sqlite", "mariadb"])
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    yield request.param
    connections[request.param].close()
    if request.param == "pooled":
        connections["pooled"].close_pool()  # type: ignore[attr-defined]


@PLACES
@CLOSINGS
def test_a_task_cannot_end_the_callers_transaction(alias: str, close: Close, where: Where) -> None:
    """Inside the caller's `atomic`, closing does nothing: same session, same rows, a clean roll back."""
    with pytest.raises(Abandoned), transaction.atomic(using=alias):
        Entry.objects.using(alias).create(name="of the caller")
        driver = connections[alias].connection
        where(close, alias)
        assert connections[alias].connection is driver
        assert names(alias) == ["of the caller"]
        assert connections[alias].in_atomic_block
        raise Abandoned
    assert connections[alias].connection is driver
    assert names(alias) == []


@PLACES
@CLOSINGS
def test_the_servers_session_is_the_same(close: Close, where: Where, postgres: PostgresObserver) -> None:
    """The server sees one client before, meanwhile and after, and the transaction commits."""
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        where(close, "default")
        assert backend_pid() == pid
        assert postgres.backends() == {pid}
    assert backend_pid() == pid
    assert names() == ["of the caller"]


def test_a_connection_older_than_the_library() -> None:
    """What was opened before `django_executors` was imported, a task cannot close either."""
    finished = run_python(
        """
        from django.db import connection, transaction
        with transaction.atomic():
            driver = connection.connection
            from django_executors import ImmediateExecutor
            ImmediateExecutor().submit(lambda: connection.close()).result(0)
            assert connection.connection is driver
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        connection.close()
        assert connection.connection is None
        """,
        settings="tests.settings",
    )
    assert (finished.returncode, finished.stderr) == (0, "")


@CLOSINGS
def test_outside_a_transaction(close: Close) -> None:
    """A caller's connection that is in no transaction stays too: it is the caller's to close."""
    pid = backend_pid()
    in_a_task(close, "default")
    assert backend_pid() == pid
    connection.close()
    assert connection.connection is None


@CLOSINGS
def test_hooks_for_the_commit_stay(close: Close) -> None:
    """What the caller registered by `transaction.on_commit` is called, which a real close forgets."""
    committed: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: committed.append("the caller's"))
        in_a_task(close, "default")
        in_a_task(transaction.on_commit, lambda: committed.append("the task's"))
        assert committed == []
    assert committed == ["the caller's", "the task's"]


def test_a_task_is_in_the_callers_transaction() -> None:
    """A task sees the caller's uncommitted rows; its own are rolled back with them, `atomic` or not."""
    executor = ImmediateExecutor()

    def add(name: str) -> list[str]:
        with transaction.atomic():
            Entry.objects.create(name=name)
        return names()

    def add_and_abandon(name: str) -> None:
        with transaction.atomic():
            add(name)
            raise Abandoned

    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        assert executor.submit(add, "of the task").result(0) == ["of the caller", "of the task"]
        assert isinstance(executor.submit(add_and_abandon, "abandoned").exception(0), Abandoned)
        assert names() == ["of the caller", "of the task"]
        raise Abandoned
    assert names() == []


def test_nothing_is_closed_when_a_task_ends(postgres: PostgresObserver) -> None:
    """What a task connects in the caller's thread stays open for the next one, and for the caller."""
    executor = ImmediateExecutor()
    assert connection.connection is None
    pids = {executor.submit(backend_pid).result(0) for _ in range(3)} | {backend_pid()}
    assert postgres.backends() == pids
    assert len(pids) == 1


@pytest.mark.parametrize("close", [close_the_connection, close_all])
@pytest.mark.parametrize("where", [in_a_task, in_a_callback])
def test_a_task_may_close_what_it_opened(close: Close, where: Where, postgres: PostgresObserver) -> None:
    """A connection that the task itself opened, on another alias, it closes; the caller's stays."""

    def task() -> None:
        assert names("other") == []
        assert postgres.backends("other")
        close("other")
        assert connections["other"].connection is None
        assert not postgres.left("other")
        assert names() == ["of the caller"]

    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        where(task)
        assert backend_pid() == pid
    assert names() == ["of the caller"]


def test_the_caller_may_close_afterwards(postgres: PostgresObserver) -> None:
    """When the task has ended, however it did, closing closes."""
    for where in (in_a_task, in_a_failing_task, in_a_callback, in_a_pool_that_is_inline):
        backend_pid()
        where(close_all, "default")
        assert postgres.backends()
        connection.close()
        assert connection.connection is None
        assert not postgres.left()


def test_scopes_and_release_connections_in_a_task(postgres: PostgresObserver) -> None:
    """A scope in a task closes what opened in it; `release_connections()` nothing of the caller's."""

    def task() -> None:
        with connection_scope():
            assert names("other") == []
            assert names() == []
        assert not postgres.left("other")
        release_connections()

    with connection_scope():
        pid = backend_pid()
        in_a_task(task)
        assert backend_pid() == pid
    assert connection.connection is None
    assert not postgres.left()


# Tasks in their callers' threads, in workers and on a lent connection, and initializers there.


def test_in_a_task_of_a_real_pool(postgres: PostgresObserver) -> None:
    """In a worker, tasks use the worker's connection and cannot close it; the worker does at its end."""

    def task() -> tuple[list[int], list[str]]:
        pids = []
        with transaction.atomic():
            Entry.objects.create(name="of the worker")
            for close in (close_the_connection, close_all, close_old):
                pids.append(ImmediateExecutor().submit(backend_pid).result(0))
                in_a_task(close, "default")
                in_a_callback(close, "default")
                pids.append(backend_pid())
            seen = ImmediateExecutor().submit(names).result(0)
        in_a_task(release_connections)
        return [*pids, backend_pid()], seen

    pids, seen = ThreadPoolExecutor(1).submit(task).result(10)
    assert len(set(pids)) == 1
    assert seen == names() == ["of the worker"]
    connection.close()
    assert all_connections() == ()
    assert not postgres.left()


def test_two_threads_on_one_lent_connection(lent: Any, postgres: PostgresObserver) -> None:
    """While a task of either thread runs, neither can close it; when both have ended, it can be."""
    both_in, first_out = threading.Barrier(2), threading.Event()
    lent.ensure_connection()
    driver = lent.connection

    def task(is_first: bool) -> bool:
        both_in.wait(10)
        if not is_first:
            assert first_out.wait(10)
        close_all("default")
        return lent.connection is driver

    def borrow(is_first: bool) -> bool:
        connections["default"] = lent
        stayed = ImmediateExecutor().submit(task, is_first).result(0)
        if is_first:
            first_out.set()
        return stayed

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(borrow, [True, False], timeout=20)) == [True, True]
    assert postgres.backends()
    lent.close()
    assert lent.connection is None
    assert not postgres.left()


# Initializers


def test_initializers_run_once_in_each_thread() -> None:
    """Under `run_inline` a pool's initializer runs before its first task, in each submitting thread."""
    ran: list[int] = []

    def submit_twice(pool: ThreadPoolExecutor) -> None:
        for _ in range(2):
            assert pool.submit(abs, -1).result(0) == 1

    with run_inline(), ThreadPoolExecutor(1, initializer=ran.append, initargs=(5,)) as pool:
        assert ran == []
        submit_twice(pool)
        thread = threading.Thread(target=submit_twice, args=[pool])
        thread.start()
        thread.join(10)
    assert ran == [5, 5]


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
def test_an_initializer_that_raises(kind: type[BaseException]) -> None:
    """Under `run_inline` its error is the cause of the future's BrokenThreadPool; no task has run."""
    ran: list[int] = []
    error = kind("of the initializer")
    with run_inline(), ThreadPoolExecutor(1, initializer=fail, initargs=(error,)) as pool:
        future = pool.submit(ran.append, 1)
        with pytest.raises(BrokenThreadPool, match="initializer failed") as caught:
            future.result(0)
    assert caught.value.__cause__ is error
    assert ran == []


def test_ctrl_c_in_an_initializer() -> None:
    """Ctrl-C in an initializer is raised where the task was submitted, as Ctrl-C in a task is."""
    pool = ThreadPoolExecutor(1, initializer=fail, initargs=(KeyboardInterrupt(),))
    with run_inline(), pytest.raises(KeyboardInterrupt):
        pool.submit(abs, -1)
