"""A task in its caller's thread: what its future says, and that it leaves the caller's connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor as Standard
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any, TypeVar

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from django.test import TestCase
from django.utils import translation

from django_executors import (
    DeadlockError,
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.gates import Gate
from tests.support.in_callers_thread import (
    CLOSINGS,
    PLACES,
    Abandoned,
    Where,
    close_all,
    fail,
    in_a_callback,
    in_a_task,
    names,
)
from tests.support.kept import backend
from tests.support.observers import PostgresObserver
from tests.support.running_cases import passes
from tests.support.subprocesses import run_python

T = TypeVar("T")


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


@pytest.mark.parametrize("executor", [ImmediateExecutor, ThreadPoolExecutor])
def test_keyboard_interrupt_is_raised(executor: Callable[[], concurrent.futures.Executor]) -> None:
    """Ctrl-C ends the caller, through tasks in tasks; the executor goes on, if the caller does."""
    pool, outer = executor(), []
    connection.ensure_connection()
    with run_inline():
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            outer.append(pool.submit(lambda: pool.submit(fail, KeyboardInterrupt("Ctrl-C"))))
        assert outer == []
        assert pool.submit(abs, -1).result(0) == 1
    connection.close()
    assert connection.connection is None


# In a coroutine.


def test_in_djangos_asynchronous_tests() -> None:
    """A task runs in the thread and the transaction of the test's ORM calls, awaited or not."""
    found: list[list[str]] = []

    class Case(TestCase):
        databases = {"default"}  # noqa: RUF012

        @classmethod
        def setUpTestData(cls) -> None:
            Entry.objects.create(name="of the class")

        async def test_it(self) -> None:
            self.addCleanup(lambda: found.append(names()))
            await Entry.objects.acreate(name="of the test")
            for executor in (pool, ImmediateExecutor()):
                read = await asyncio.wrap_future(executor.submit(names))
                assert read == ["of the class", "of the test"]
                running = asyncio.get_running_loop().run_in_executor(executor, threading.get_ident)
                assert await running == threading.main_thread().ident
                create = partial(Entry.objects.create, name="of a task")
                await asyncio.wrap_future(executor.submit(create))
                deleted, _ = await Entry.objects.filter(name="of a task").adelete()
                assert deleted == 1
            pool.submit(create)  # nobody awaits it
            assert await Entry.objects.filter(name="of a task").acount() == 1
            pool.submit(create)  # and nothing else is awaited

    with ThreadPoolExecutor(1) as pool, run_inline():
        passes(Case)
        assert pool.stats().completed == 5
    assert found == [["of the class", "of the test", "of a task", "of a task"]]
    assert names() == []


def in_a_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it in an event loop of its own, whose ORM calls run in a thread of asgiref's."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            try:
                return await main()
            finally:
                await sync_to_async(lambda: connection.close())()

    return asyncio.run(bounded())


def test_where_the_orm_works() -> None:
    """Whichever thread asgiref has for a coroutine's ORM calls: there the task runs."""

    async def main() -> bool:
        thread = await sync_to_async(threading.get_ident)()
        return thread == await asyncio.wrap_future(ImmediateExecutor().submit(threading.get_ident))

    async def main_in_a_context() -> bool:
        async with ThreadSensitiveContext():  # as that of a request
            return await main()

    async def main_in_a_task() -> bool:
        return await asyncio.create_task(main())

    for each in (main, main_in_a_context, main_in_a_task):
        assert in_a_loop(each), each
        assert async_to_sync(each)(), each


def test_result_before_it_is_awaited() -> None:
    """`result` and `exception` of a future that is not done raise, and do not block the loop."""
    executor, go_on = ImmediateExecutor(), threading.Event()

    async def main() -> None:
        future = executor.submit(go_on.wait, 20)
        for ask in (future.result, future.exception):
            with pytest.raises(DeadlockError, match=r"^task=threading\.Event\.wait runs inline"):
                ask()
        go_on.set()
        assert await asyncio.wrap_future(future)
        assert future.result()
        assert future.exception() is None

    in_a_loop(main)


def test_a_task_that_needs_the_loop() -> None:
    """A task that runs code in the submitter's event loop gets its result: the loop is not blocked."""

    async def main() -> int:
        return await asyncio.wrap_future(ImmediateExecutor().submit(task))

    async def count() -> int:
        return await Entry.objects.acount()

    def task() -> int:
        return async_to_sync(count)()

    assert in_a_loop(main) == 0
    assert async_to_sync(main)() == 0
    connection.close()


def test_cancelled_in_a_coroutine(gate: Gate) -> None:
    """What waits for a task that has not begun may be cancelled, and the task never runs."""
    executor, ran = ImmediateExecutor(), list[int]()

    async def main() -> None:
        first = asyncio.wrap_future(executor.submit(gate))
        second = asyncio.ensure_future(asyncio.wrap_future(executor.submit(ran.append, 1)))
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)  # in which the loop tells the task
        gate.open()
        await first
        await asyncio.wrap_future(executor.submit(ran.append, 2))

    in_a_loop(main)
    assert ran == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt("Ctrl-C"), ValueError("no"), SystemExit(1)])
def test_errors_in_a_coroutine(error: BaseException) -> None:
    """Each is in the future, since nobody else could be told."""
    executor = ImmediateExecutor()

    async def main() -> None:
        future = executor.submit(fail, error)
        with pytest.raises(DeadlockError):
            future.exception()
        await asyncio.get_running_loop().run_in_executor(None, concurrent.futures.wait, [future])
        assert future.exception() is error

    in_a_loop(main)
    assert executor.stats().failed == 1


def test_what_a_coroutine_leaves_to_its_task() -> None:
    """A task has the coroutine's language and variables, and what it changes stays there."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    executor = ImmediateExecutor()

    def task() -> tuple[str | None, str]:
        found = translation.get_language(), variable.get()
        translation.activate("fr")
        variable.set("of the task")
        return found

    async def main() -> None:
        with translation.override("de"):
            variable.set("of the coroutine")
            future = executor.submit(task)
            assert await asyncio.wrap_future(future) == ("de", "of the coroutine")
            assert (translation.get_language(), variable.get()) == ("de", "of the coroutine")

    in_a_loop(main)


def test_callbacks_of_a_coroutines_task() -> None:
    """They run where the task has, and like it they cannot close what was open there."""
    executor = ImmediateExecutor()

    def close_and_tell(future: concurrent.futures.Future[Any]) -> None:
        connection.close()
        told.put((connection.connection is not None, threading.get_ident()))

    async def main() -> None:
        thread = await sync_to_async(threading.get_ident)()
        await sync_to_async(lambda: connection.ensure_connection())()
        executor.submit(backend_pid).add_done_callback(close_and_tell)
        assert await asyncio.to_thread(told.get, timeout=20) == (True, thread)

    told: queue.SimpleQueue[tuple[bool, int]] = queue.SimpleQueue()
    in_a_loop(main)


def test_a_replaced_submit_in_a_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tool has replaced the standard `submit`, its own future gets the result too."""
    original, seen = Standard.submit, list[concurrent.futures.Future[Any]]()

    def submit(self: Standard, fn: Any, /, *args: Any) -> concurrent.futures.Future[Any]:
        future = original(self, fn, *args)
        if isinstance(self, ThreadPoolExecutor):
            seen.append(future)
        return future

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool, run_inline():
            assert await asyncio.wrap_future(pool.submit(abs, -1)) == 1
            (standard,) = seen
            assert await asyncio.wrap_future(standard) == 1

    monkeypatch.setattr(Standard, "submit", submit)
    in_a_loop(main)


def test_where_blocking_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With DJANGO_ALLOW_ASYNC_UNSAFE, as in a notebook, a task runs at once in the loop's thread."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    executor = ImmediateExecutor()

    async def main() -> int:
        return executor.submit(threading.get_ident).result()

    assert asyncio.run(main()) == threading.get_ident()


@pytest.mark.slow
def test_works_without_settings() -> None:
    """Without settings it runs tasks and callbacks that use no database, and configures nothing."""
    finished = run_python(
        """
        from django.conf import settings
        from django_executors import ImmediateExecutor, ThreadPoolExecutor
        from django_executors.testing import run_inline
        for executor in (ImmediateExecutor(), ThreadPoolExecutor(1)):
            with run_inline(), executor:
                executor.submit(abs, -1).add_done_callback(lambda future: print(future.result()))
                print(list(executor.map(abs, [-2, -3])))
        assert not settings.configured
        """,
        settings=None,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "1\n[2, 3]\n" * 2, "")


class Witness:
    """Lives as long as the frame that it is in."""


def test_no_cycle_holds_an_exception() -> None:
    """With its future, a task's exception goes, and the frames and their rows with it."""
    executor = ImmediateExecutor()
    references: list[weakref.ref[Witness]] = []

    def task(kind: type[BaseException] | None = ValueError) -> None:
        witness = Witness()
        references.append(weakref.ref(witness))
        if kind is not None:
            raise kind

    def witnessed(submit: Callable[..., concurrent.futures.Future[None]], *args: object) -> None:
        with contextlib.suppress(ValueError, KeyboardInterrupt):
            submit(task, *args).result(0)  # a name for the future would be a cycle of this frame's own

    witnessed(executor.submit)
    witnessed(executor.submit, KeyboardInterrupt)
    executor.submit(witnessed, executor.submit).result(0)
    with run_inline():
        witnessed(ThreadPoolExecutor(1, initializer=int).submit)
    with contextlib.suppress(ValueError):
        list(executor.map(task, [None, ValueError, None]))
    assert [reference() for reference in references] == [None] * 7


# A task in its caller's thread ends no transaction of the caller's, and closes nothing of it.


@pytest.fixture(params=["default", "pooled", "sqlite", "mariadb"])
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    yield request.param
    connections[request.param].close()
    if request.param == "pooled":
        connections["pooled"].close_pool()  # type: ignore[attr-defined]


def test_a_task_cannot_end_the_callers_transaction(alias: str) -> None:
    """Inside the caller's `atomic`, closing does nothing: same session, same rows, a clean roll back."""
    for where, close in itertools.product(PLACES, CLOSINGS):
        with pytest.raises(Abandoned), transaction.atomic(using=alias):
            Entry.objects.using(alias).create(name="of the caller")
            driver, session = connections[alias].connection, backend(alias)
            where(close, alias)
            assert connections[alias].connection is driver, (where, close)
            assert backend(alias) == session
            assert names(alias) == ["of the caller"]
            assert connections[alias].in_atomic_block
            raise Abandoned
        assert connections[alias].connection is driver
        assert names(alias) == []


@pytest.mark.parametrize("kind", [ImmediateExecutor, ThreadPoolExecutor])
def test_connecting_anew_in_a_test_case(kind: Callable[[], concurrent.futures.Executor]) -> None:
    """In Django's TestCase a task that closes and connects goes on with the test's connection."""
    executor = kind()

    def connect_anew() -> object:
        connection.close()
        connection.connect()
        Entry.objects.create(name="of the task")
        return connection.connection

    class Case(TestCase):
        @classmethod
        def setUpTestData(cls) -> None:
            Entry.objects.create(name="of the class")

        def test_it(self) -> None:
            Entry.objects.create(name="of the test")
            before = connection.connection
            with run_inline():
                assert executor.submit(connect_anew).result(0) is before
            assert connection.in_atomic_block
            assert names() == ["of the class", "of the test", "of the task"]

    passes(Case)
    assert names() == []


def test_it_may_close_afterwards_and_commit() -> None:
    """The transaction commits, with the hooks that a real close forgets; then closing closes."""
    for where in PLACES:
        for close in CLOSINGS:
            committed: list[str] = []
            with transaction.atomic():
                Entry.objects.create(name="of the caller")
                transaction.on_commit(lambda: committed.append("the caller's"))  # noqa: B023
                where(close, "default")
                in_a_task(transaction.on_commit, lambda: committed.append("the task's"))  # noqa: B023
                assert committed == []
            assert committed == ["the caller's", "the task's"]
        connections.close_all()
        assert connection.connection is None, where
    assert Entry.objects.count() == len(PLACES) * len(CLOSINGS)


@pytest.mark.slow
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


def test_outside_a_transaction() -> None:
    """A caller's connection that is in no transaction stays too: it is the caller's to close."""
    pid = backend_pid()
    for close in CLOSINGS:
        in_a_task(close, "default")
        assert backend_pid() == pid, close


def test_a_task_is_in_the_callers_transaction() -> None:
    """A task sees the caller's uncommitted rows; its own are rolled back with them, `atomic` or not."""
    executor = ImmediateExecutor()

    def add(name: str) -> None:
        with transaction.atomic():
            Entry.objects.create(name=name)
            if name == "abandoned":
                raise Abandoned

    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        executor.submit(add, "of the task").result(0)
        assert isinstance(executor.submit(add, "abandoned").exception(0), Abandoned)
        assert executor.submit(names).result(0) == ["of the caller", "of the task"]
        raise Abandoned
    assert names() == []


def test_nothing_is_closed_when_a_task_ends(postgres: PostgresObserver) -> None:
    """What a task connects in the caller's thread stays open for the next one, and for the caller."""
    executor = ImmediateExecutor()
    assert connection.connection is None
    pids = {executor.submit(backend_pid).result(0) for _ in range(3)} | {backend_pid()}
    assert postgres.backends() == pids
    assert len(pids) == 1


@pytest.mark.parametrize("where", [in_a_task, in_a_callback])
def test_a_task_may_close_what_it_opened(where: Where, postgres: PostgresObserver) -> None:
    """A connection that the task itself opened, on another alias, it closes; the caller's stays."""

    def task() -> None:
        assert names("other") == []
        assert postgres.backends("other")
        close_all("other")
        assert connections["other"].connection is None
        assert not postgres.left("other")
        assert names() == ["of the caller"]

    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        where(task)
        assert backend_pid() == pid


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


def test_in_a_task_of_a_real_pool() -> None:
    """In a worker, tasks use the worker's connection and cannot close it; the worker does at its end."""

    def task() -> set[int]:
        pids = {backend_pid()}
        with transaction.atomic():
            Entry.objects.create(name="of the worker")
            for close in CLOSINGS:
                in_a_task(close, "default")
                in_a_callback(close, "default")
                pids.add(ImmediateExecutor().submit(backend_pid).result(0))
        in_a_task(release_connections)
        return pids | {backend_pid()}

    assert len(ThreadPoolExecutor(1).submit(task).result(20)) == 1
    assert all_connections() == ()
    assert names() == ["of the worker"]


def test_two_threads_on_one_lent_connection(lent: Any) -> None:
    """While a task of either thread runs, neither can close it; when both have ended, it can be."""
    both_in, first_out = threading.Barrier(2), threading.Event()
    lent.ensure_connection()
    driver = lent.connection

    def task(is_first: bool) -> bool:
        both_in.wait(20)
        assert is_first or first_out.wait(20)
        close_all("default")
        return lent.connection is driver

    def borrow(is_first: bool) -> bool:
        connections["default"] = lent
        stayed = ImmediateExecutor().submit(task, is_first).result(0)
        if is_first:
            first_out.set()
        return stayed

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(borrow, [True, False], timeout=60)) == [True, True]
    lent.close()
    assert lent.connection is None


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
        thread.join(20)
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
