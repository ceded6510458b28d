"""A bounded pool in trouble: nobody waits for ever, and no place is lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import http.client
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures.thread import BrokenThreadPool
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import AsyncSingleThreadContext, ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.cache import caches
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.lifecycle.holder import current_holder
from tests.projects.asgi_tasks import TASKS, count, with_asyncio_run
from tests.projects.testapp.models import Entry
from tests.support.blocked import blocked, full, submitter
from tests.support.ceilings import ceiling
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.serving import uvicorn
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

__all__ = ["submitter"]


class FailingInitializer(Gate):
    """An initializer that fails when it is told to."""

    def __call__(self, *_: object) -> None:
        super().__call__()
        raise LookupError


@pytest.fixture
def failing() -> Any:
    gate = FailingInitializer()
    yield gate
    gate.open()


def test_broken_pool(failing: Gate, submitter: concurrent.futures.Executor) -> None:
    """All submitters who wait hear that the initializer has failed."""
    pool = ThreadPoolExecutor(1, initializer=failing, max_pending=1)
    first = pool.submit(int)
    submitting = [submitter.submit(pool.submit, int) for _ in range(4)]
    assert wait_until(blocked, lambda count: count == 4) == 4
    failing.open()
    for future in [*submitting, first]:
        with pytest.raises(BrokenThreadPool):
            future.result(10)
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.pending, stats.busy) == (1, 1, 0, 0)


def test_broken_pool_with_cancelled_tasks(
    failing: Gate, submitter: concurrent.futures.Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that was cancelled before stays so, and those behind it hear that the pool is broken."""
    pool = ThreadPoolExecutor(1, initializer=failing, max_pending=3)
    pending = [pool.submit(int) for _ in range(3)]
    failing.wait_for()
    assert pending[0].cancel()
    pending.append(pool.submit(int))
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(blocked, lambda count: count == 2) == 2
    failing.open()
    for future in [*submitting, *pending[1:]]:
        with pytest.raises(BrokenThreadPool):
            future.result(10)
    assert concurrent.futures.wait(pending, 10).not_done == set()
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.failed, stats.pending) == (4, 1, 3, 0)
    del future, submitting, pending
    assert not [each for each in caplog.records if each.name.startswith("django_executors")]


def test_result_that_is_set_twice(caplog: pytest.LogCaptureFixture) -> None:
    """The standard error says so, and nothing else is said of a task that has succeeded."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(int)
        assert future.result(10) == 0
        with pytest.raises(concurrent.futures.InvalidStateError):
            future.set_exception(ValueError())
        del future
    assert caplog.records == []


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits hears it, the task is not run later, and its place is free when there are threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    pool = ThreadPoolExecutor(2, max_pending=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(done.append, "refused")
    pool.submit(done.append, "submitted").result(10)
    pool.shutdown()
    assert done == ["submitted"]
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.completed, stats.pending) == (4, 3, 1, 0)


class InterruptedOnce(threading.Condition):
    """A condition of which one waiter is interrupted as it wakes up."""

    interrupted = False

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return done


def test_interrupted_while_waiting(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """A submitter that is interrupted as it wakes up leaves the place to the next one."""
    pool = full(gate)
    bound = pool._work.bound
    assert bound is not None
    bound._changed = InterruptedOnce(bound._lock)
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(lambda: len(bound._changed._waiters) == 2)  # type: ignore[attr-defined]
    gate.open()
    errors = [future.exception(10) for future in submitting]
    assert sorted(type(error).__name__ for error in errors) == ["KeyboardInterrupt", "NoneType"]
    pool.shutdown()


def test_interrupted_shutdown(
    gate: Gate, submitter: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `shutdown` is interrupted before the pool refuses tasks, who waits for room waits on."""
    pool = full(gate)
    submitting = submitter.submit(pool.submit, int)
    assert wait_until(blocked)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "shutdown", interrupted)
        pool.shutdown()
    assert blocked() == 1
    assert pool._work.bound is not None
    assert not pool._work.bound._is_closed  # or it would try on and on
    gate.open()
    assert submitting.result(10).result(10) == 0
    pool.shutdown()


INTERRUPTED = """
import random, signal, sys
from django_executors import ThreadPoolExecutor

class Alarm(Exception):
    pass

def handle(*_):
    if armed:
        raise Alarm

armed = False
signal.signal(signal.SIGALRM, handle)
for seed in range(ROUNDS):
    random.seed(seed)
    with ThreadPoolExecutor(1, max_pending=1000) as pool:
        pool.submit(int).result(10)
        for _ in range(40):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 3e-4))
                try:
                    while True:
                        pool.submit(int)
                finally:
                    armed = False
            except Alarm:
                pass
    assert pool.stats().pending == 0, pool.stats()
    assert not pool._work.bound._places, pool._work.bound._places
    assert not pool._work.items
print("all ended")
"""


def test_signals_while_submitting() -> None:
    """A signal's handler that raises, anywhere in `submit`, leaves no lock taken and no place lost."""
    code = INTERRUPTED.replace("ROUNDS", "40")
    # Not measured: a tracer is Python's to interrupt, at every line, where no signal comes otherwise.
    done = run_python(code, settings=None, COVERAGE_PROCESS_CONFIG="", COVERAGE_PROCESS_START="")
    assert (done.stdout, done.stderr) == ("all ended\n", "")


# Async code in a task: it ends, and what its ORM calls opened is let go before the future resolves.


Task = Callable[[], int]
Main = Callable[[], Coroutine[Any, Any, None]]

MIDDLEWARE = {
    "no middleware": "",
    "sync middleware": "tests.projects.asgi_tasks.sync_middleware",
    "both in turn": "tests.projects.asgi_tasks.sync_middleware "
    "tests.projects.asgi_tasks.async_middleware "
    "tests.projects.asgi_tasks.sync_middleware",
}
VIEWS = ["sync_view", "async_view", "view_that_awaits"]


@pytest.mark.parametrize("middleware", MIDDLEWARE)
def test_under_uvicorn(middleware: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """Submitted from a sync or an async view, they end, in the view's language, and nothing is left."""
    log = tmp_path / "uvicorn.log"
    # Without the app: nothing but the pool lets go.
    variables = {"TEST_CONN_MAX_AGE": "600", "TEST_WITHOUT_APP": "yes"}
    paths = [f"/{view}/{task}" for view in VIEWS for task in TASKS]
    answers = []
    with uvicorn(log, TEST_MIDDLEWARE=MIDDLEWARE[middleware], **variables) as port:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            for path in paths:
                connection.request("GET", path)
                response = connection.getresponse()
                answers.append((path, response.status, response.read()))
        left = postgres.left()
    assert answers == [(path, 200, b"0 de") for path in paths], log.read_text()
    assert not left
    assert log.read_text() == ""


def from_the_main_thread(task: Task) -> int:
    with ThreadPoolExecutor(1) as pool:
        return from_(pool, task)


def from_(pool: ThreadPoolExecutor, task: Task) -> int:
    result = pool.submit(task).result(20)
    assert all_connections() == ()
    return result


def from_a_coroutine(task: Task) -> int:
    async def main() -> int:
        with ThreadPoolExecutor(1) as pool:
            result = await asyncio.wrap_future(pool.submit(task))
            assert all_connections() == ()
            return result

    return asyncio.run(main())


def from_sync_code_in_a_coroutine(task: Task) -> int:
    return asyncio.run(sync_to_async(from_the_main_thread)(task))


def from_async_to_sync(task: Task) -> int:
    return async_to_sync(sync_to_async(from_the_main_thread))(task)


def from_the_only_thread_for_loops(task: Task) -> int:
    async def main() -> int:
        return from_the_main_thread(task)  # holds up that thread

    with AsyncSingleThreadContext():
        return async_to_sync(main)()


def from_a_task(task: Task) -> int:
    with ThreadPoolExecutor(1) as outer:
        return outer.submit(from_the_main_thread, task).result(20)


WAYS = [
    from_the_main_thread,
    from_a_coroutine,
    from_sync_code_in_a_coroutine,
    from_async_to_sync,
    from_the_only_thread_for_loops,
    from_a_task,
]


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("task", TASKS.values())
@pytest.mark.parametrize("way", WAYS)
def test_without_a_server(way: Callable[[Task], int], task: Task, postgres: PostgresObserver) -> None:
    """They end and leave nothing, from wherever they are submitted."""
    assert way(task) == 0
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_no_thread_is_left(postgres: PostgresObserver) -> None:
    """`asyncio.run` in a task runs the ORM in a thread of the task's own, which ends with the task."""

    def task() -> threading.Thread:
        return asyncio.run(thread_of_the_orm())

    async def thread_of_the_orm() -> threading.Thread:
        await count()
        return await sync_to_async(threading.current_thread)()

    with ThreadPoolExecutor(1) as pool:
        ran_in = [pool.submit(task).result(20) for _ in range(2)]
        assert all_connections() == ()
        assert not postgres.left()
        assert [thread.is_alive() for thread in ran_in] == [False, False]
        assert len({*ran_in, *threading.enumerate()}) == 2 + threading.active_count()


@pytest.mark.usefixtures("conn_max_age")
def test_many(postgres: PostgresObserver) -> None:
    """With tasks queued, of both kinds, all end, and nothing is left at the end."""
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(task) for _ in range(10) for task in TASKS.values()]
        assert [future.result(20) for future in futures] == [0] * 30
        assert all_connections() == ()
        assert not postgres.left()


async def raises() -> None:
    await count()
    raise LookupError("of the coroutine")


async def is_cancelled() -> None:
    await count()
    async with asyncio.timeout(0.01):
        await asyncio.Event().wait()


async def counts_for_ever() -> None:
    while True:
        await count()


async def is_cancelled_from_outside() -> None:
    await asyncio.wait_for(counts_for_ever(), 0.1)


async def is_cancelled_while_the_orm_works() -> None:
    go_on = threading.Event()

    def query() -> None:
        Entry.objects.count()
        assert go_on.wait(10)
        Entry.objects.count()

    try:
        await asyncio.wait_for(sync_to_async(query)(), 0.1)
    finally:
        go_on.set()


def through_asyncio_run(main: Main) -> None:
    asyncio.run(main())


def through_async_to_sync(main: Main) -> None:
    async_to_sync(main)()


ENDS: dict[Main, type[Exception]] = {
    raises: LookupError,
    is_cancelled: TimeoutError,
    is_cancelled_from_outside: TimeoutError,
    is_cancelled_while_the_orm_works: TimeoutError,
}


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("main", ENDS)
@pytest.mark.parametrize("run", [through_asyncio_run, through_async_to_sync])
def test_ends_in_an_exception(
    main: Main, run: Callable[[Main], None], postgres: PostgresObserver
) -> None:
    """A coroutine that raises, or is cancelled at any point, leaves nothing either."""
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ENDS[main]):
            pool.submit(run, main).result(20)
        assert all_connections() == ()
        assert not postgres.left()
        assert pool.submit(with_asyncio_run).result(20) == 0


AT_EXIT = """
import asyncio, concurrent.futures, threading
from django_executors import ThreadPoolExecutor
from tests.projects.asgi_tasks import count
from tests.support.waiting import wait_until

queried = threading.Event()
standard = concurrent.futures.ThreadPoolExecutor(1)

def exits():
    try:
        standard.submit(int)
    except RuntimeError:
        return True

def task():
    assert asyncio.run(count()) == 0
    queried.set()
    assert wait_until(exits, within=20)
    return "done"

def report(future):
    print(future.exception() or future.result())

ThreadPoolExecutor(1).submit(task).add_done_callback(report)
assert queried.wait(20)
"""


def test_at_exit() -> None:
    """A task that ends while the interpreter exits has its own result, not an error of the clean-up."""
    ended = run_python(AT_EXIT, settings="tests.settings", warnings="ignore")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_loop_does_not_outlive_its_task() -> None:
    """After `sync_to_async` has used a worker, a coroutine of a later task runs in a loop of its own."""

    @async_to_sync
    async def where() -> str:
        return threading.current_thread().name

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(pool)
        assert await sync_to_async(int, thread_sensitive=False)() == 0
        return pool.submit(where).result(10)  # this loop does not run meanwhile

    pool = ThreadPoolExecutor(1, "of the test")
    assert asyncio.run(main()) != threading.current_thread().name


# Async code that a task gives to a loop of somebody else's, or has in a context of its own.


WORKERS = 8
Submit = Callable[..., Any]
Main_async_elsewhere = Callable[[], Coroutine[Any, Any, int]]


@pytest.fixture
def server_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own. What asgiref's thread holds is closed in the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    close = sync_to_async(connections.close_all)
    asyncio.run_coroutine_threadsafe(close(), loop).result(10)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def current_thread() -> threading.Thread:
    return await sync_to_async(threading.current_thread)()


def test_code_that_needs_the_worker(server_loop: asyncio.AbstractEventLoop) -> None:
    """What a task gives to the server's loop may wait for the pool: the worker does not wait for it."""

    def needs_the_pool() -> threading.Thread:
        assert pool.submit(int).result(10) == 0
        return threading.current_thread()

    async def notify() -> threading.Thread:
        return await sync_to_async(needs_the_pool)()

    def task() -> None:
        given.append(asyncio.run_coroutine_threadsafe(notify(), server_loop))

    given: list[Any] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result(20)
        ordinary = asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20)
        assert given[0].result(20) is ordinary


@pytest.mark.usefixtures("conn_max_age")
def test_queries(server_loop: asyncio.AbstractEventLoop, postgres: PostgresObserver) -> None:
    """Of all workers' coroutines there, no more is left than asgiref's own connection."""
    barrier = threading.Barrier(WORKERS)

    def task() -> int:
        barrier.wait(10)
        return asyncio.run_coroutine_threadsafe(count(), server_loop).result(20)

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(task) for _ in range(WORKERS)]
        assert [future.result(20) for future in futures] == [0] * WORKERS
        (left,) = all_connections()
        assert left.executor is None
        assert len(postgres.backends("app")) == 1


async def in_a_thread() -> int:
    return await asyncio.to_thread(Entry.objects.count)


async def not_thread_sensitive() -> int:
    return await sync_to_async(Entry.objects.count, thread_sensitive=False)()


async def in_a_context() -> int:
    async with ThreadSensitiveContext():
        return await count()


@pytest.mark.parametrize("main", [count, in_a_thread, not_thread_sensitive, in_a_context])
def test_no_permit_is_taken(main: Main_async_elsewhere, server_loop: asyncio.AbstractEventLoop) -> None:
    """What the threads of another loop hold is none of what a ceiling allows to workers."""

    def task() -> tuple[int, int]:
        elsewhere = asyncio.run_coroutine_threadsafe(main(), server_loop)
        return Entry.objects.count(), elsewhere.result(20)

    with ceiling(1, timeout=5.0), ThreadPoolExecutor(2) as pool:
        assert pool.submit(task).result(20) == (0, 0)
        assert [pool.submit(Entry.objects.count).result(20) for _ in range(2)] == [0, 0]
        assert pool.stats().connections_opened == 3


def test_no_cache_client_is_taken(server_loop: asyncio.AbstractEventLoop) -> None:
    """What a task's coroutine makes in another loop's thread is not closed with the task."""

    async def use() -> object:
        return await caches["default"].aget("number")

    def task() -> list[object]:
        asyncio.run_coroutine_threadsafe(use(), server_loop).result(20)
        return list(current_holder().caches)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(20) == []


def test_a_tasks_context_in_a_callback(server_loop: asyncio.AbstractEventLoop) -> None:
    """A callback that runs in its task's context uses asgiref's thread, as every callback does."""
    ordinary = asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20)
    found: list[threading.Thread] = []
    go_on = threading.Event()

    def task() -> contextvars.Context:
        assert go_on.wait(10)
        return contextvars.copy_context()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task)
        future.add_done_callback(
            lambda future: found.append(future.result().run(asyncio.run, current_thread()))
        )
        go_on.set()
    assert found == [ordinary]


def submit_from_this_thread(submit: Submit, *arguments: Any) -> Any:
    return submit(*arguments).result(20)


def submit_from_a_request(submit: Submit, *arguments: Any) -> Any:
    """As Django's ASGIHandler runs a sync view."""

    async def request() -> Any:
        async with ThreadSensitiveContext():
            return await sync_to_async(submit_from_this_thread)(submit, *arguments)

    return asyncio.run(request())


def submit_from_a_bridge(submit: Submit, *arguments: Any) -> Any:
    return async_to_sync(sync_to_async(submit_from_this_thread))(submit, *arguments)


@pytest.mark.parametrize("inherit_context", [True, False])
@pytest.mark.parametrize("way", [submit_from_this_thread, submit_from_a_request, submit_from_a_bridge])
def test_contexts_of_their_own(way: Callable[..., Any], inherit_context: bool) -> None:
    """In a task's loop, coroutines that enter asgiref's ThreadSensitiveContext run side by side."""
    barrier = threading.Barrier(4)

    def meet() -> threading.Thread:
        barrier.wait(10)
        assert Entry.objects.count() == 0
        return threading.current_thread()

    async def coroutine() -> threading.Thread:
        async with ThreadSensitiveContext():
            return await sync_to_async(meet)()

    async def main() -> list[threading.Thread]:
        return await asyncio.gather(*(coroutine() for _ in range(4)))

    def task(main: Callable[[], Coroutine[Any, Any, list[threading.Thread]]]) -> set[threading.Thread]:
        return set(asyncio.run(main()))

    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        assert len(way(pool.submit, task, main)) == 4
        assert wait_until(all_connections, lambda found: not found) == ()
        # And in none of their own, in one thread of the worker's, which ends with the task.
        assert way(pool.submit, with_asyncio_run) == 0
        assert all_connections() == ()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("main", [in_a_thread, not_thread_sensitive])
@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), lambda main: async_to_sync(main)()])
def test_other_threads(
    main: Main_async_elsewhere, run: Callable[[Any], int], postgres: PostgresObserver
) -> None:
    """Without the app too, the threads of a task's loop close what they opened when they end."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, main).result(20) == 0
        assert wait_until(all_connections, lambda found: not found) == ()
        assert not postgres.left()


def test_loops_in_and_outside_of_the_task(server_loop: asyncio.AbstractEventLoop) -> None:
    """The same coroutine runs in the worker's thread for the ORM, and in asgiref's for others' loops."""

    def task() -> tuple[threading.Thread, threading.Thread]:
        elsewhere = asyncio.run_coroutine_threadsafe(current_thread(), server_loop)
        return asyncio.run(current_thread()), elsewhere.result(20)

    with ThreadPoolExecutor(1) as pool:
        own, asgirefs = pool.submit(task).result(20)
    assert not own.is_alive()
    assert asgirefs.is_alive()
    assert asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20) is asgirefs


def test_shutdown_of_asgirefs_executor() -> None:
    """Whoever ends asgiref's own executor, as a server may, still can."""
    ended = run_python(
        """
        from asgiref.sync import SyncToAsync
        import django_executors.lifecycle.context
        SyncToAsync.single_thread_executor.submit(int).result(10)
        SyncToAsync.single_thread_executor.shutdown()
        try:
            SyncToAsync.single_thread_executor.submit(int)
        except RuntimeError as error:
            print(error)
        """,
        settings="tests.settings",
    )
    assert (ended.stdout, ended.stderr) == ("cannot schedule new futures after shutdown\n", "")
