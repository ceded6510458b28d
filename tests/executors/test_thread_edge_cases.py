"""Async code in a task: it ends, and what its ORM calls opened is let go before the future resolves."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import AsyncSingleThreadContext, ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.asgi_tasks import TASKS, count, with_asyncio_run, with_both
from tests.projects.testapp.models import Entry
from tests.support.ceilings import ceiling
from tests.support.observers import PostgresObserver
from tests.support.serving import uvicorn
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

Task = Callable[[], int]
Main = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Main], Any]

SYNC, ASYNC = "tests.projects.asgi_tasks.sync_middleware", "tests.projects.asgi_tasks.async_middleware"
MIDDLEWARE = {"no middleware": "", "both in turn": f"{SYNC} {ASYNC} {SYNC}"}
VIEWS = ["sync_view", "async_view", "view_that_awaits"]


@pytest.mark.slow
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
        return pool.submit(task).result(20) + len(all_connections())


def from_a_coroutine(task: Task) -> int:
    async def main() -> int:
        with ThreadPoolExecutor(1) as pool:
            return await asyncio.wrap_future(pool.submit(task)) + len(all_connections())

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


@pytest.mark.parametrize("way", WAYS)
def test_without_a_server(way: Callable[[Task], int], postgres: PostgresObserver) -> None:
    """They end and leave nothing, from wherever they are submitted."""
    assert way(with_both) == 0  # entries, and connections
    assert not postgres.left()


def test_no_thread_is_left(postgres: PostgresObserver) -> None:
    """`asyncio.run` in a task runs the ORM in a thread of the task's own, which ends with the task."""

    async def thread_of_the_orm() -> threading.Thread:
        await count()
        return await sync_to_async(threading.current_thread)()

    with ThreadPoolExecutor(1) as pool:
        ran_in = [pool.submit(lambda: asyncio.run(thread_of_the_orm())).result(20) for _ in range(2)]
        assert all_connections() == ()
        assert not postgres.left()
        assert [thread.is_alive() for thread in ran_in] == [False, False]
        assert not {*ran_in} & {*threading.enumerate()}


@pytest.mark.usefixtures("conn_max_age")
def test_many(postgres: PostgresObserver) -> None:
    """With tasks queued, of both kinds, all end, and nothing is left at the end."""
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(task) for _ in range(4) for task in TASKS.values()]
        assert [future.result(20) for future in futures] == [0] * 12
        assert all_connections() == ()
        assert not postgres.left()


async def raises() -> None:
    await count()
    raise TimeoutError("of the coroutine")


async def is_cancelled_while_the_orm_works() -> None:
    go_on = threading.Event()

    def query() -> None:
        Entry.objects.count()
        assert go_on.wait(20)
        Entry.objects.count()

    try:
        await asyncio.wait_for(sync_to_async(query)(), 0.05)
    finally:
        go_on.set()


def through_asyncio_run(main: Main) -> Any:
    return asyncio.run(main())


def through_async_to_sync(main: Main) -> Any:
    return async_to_sync(main)()


@pytest.mark.parametrize("main", [raises, is_cancelled_while_the_orm_works])
@pytest.mark.parametrize("run", [through_asyncio_run, through_async_to_sync])
def test_ends_in_an_exception(main: Main, run: Run, postgres: PostgresObserver) -> None:
    """A coroutine that raises, or is cancelled, leaves nothing either."""
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(TimeoutError):
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


@pytest.mark.slow
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
        return pool.submit(where).result(20)  # this loop does not run meanwhile

    pool = ThreadPoolExecutor(1, "of the test")
    assert asyncio.run(main()) != threading.current_thread().name


# Async code that a task gives to a loop of somebody else's, or has in a context of its own.


@pytest.fixture
def server_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own. What asgiref's thread holds is closed in the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    close = sync_to_async(connections.close_all)
    asyncio.run_coroutine_threadsafe(close(), loop).result(20)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


async def current_thread() -> threading.Thread:
    return await sync_to_async(threading.current_thread)()


def test_code_that_needs_the_worker(server_loop: asyncio.AbstractEventLoop) -> None:
    """What a task gives to the server's loop runs where it always does, and may wait for the pool."""

    def needs_the_pool() -> threading.Thread:
        assert pool.submit(int).result(20) == 0
        return threading.current_thread()

    async def notify() -> threading.Thread:
        return await sync_to_async(needs_the_pool)()

    def task() -> threading.Thread:
        given.append(asyncio.run_coroutine_threadsafe(notify(), server_loop))  # and does not wait
        return asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20)

    given: list[Any] = []
    with ThreadPoolExecutor(2) as pool:
        there = pool.submit(task).result(20)
        ordinary = asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20)
        assert given[0].result(20) is there is ordinary


def test_code_that_needs_the_only_worker(server_loop: asyncio.AbstractEventLoop) -> None:
    """A task that does not wait for it is over, and the worker's next one does not wait either."""

    def needs_the_pool() -> threading.Thread:
        assert pool.submit(int).result(20) == 0
        return threading.current_thread()

    async def notify() -> threading.Thread:
        return await sync_to_async(needs_the_pool)()

    def task() -> Any:
        return asyncio.run_coroutine_threadsafe(notify(), server_loop)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            given = pool.submit(task)
            assert pool.submit(int).result(20) == 0
            there = given.result(20).result(20)
        assert there is asyncio.run_coroutine_threadsafe(current_thread(), server_loop).result(20)


def test_the_orm_in_it(server_loop: asyncio.AbstractEventLoop, postgres: PostgresObserver) -> None:
    """From eight workers, it leaves at most the one connection of asgiref's ordinary thread."""
    together = threading.Barrier(8)

    def task() -> Any:
        together.wait(20)
        return asyncio.run_coroutine_threadsafe(count(), server_loop)  # and does not wait

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            given = [pool.submit(task) for _ in range(8)]
            assert [future.result(20).result(20) for future in given] == [0] * 8
        (left,) = all_connections()
        assert left.executor is None
        assert postgres.settled(1) == {left.backend_pid}
        assert pool.stats().connections_opened == 0


async def in_a_thread() -> int:
    return await asyncio.to_thread(Entry.objects.count)


async def not_thread_sensitive() -> int:
    return await sync_to_async(Entry.objects.count, thread_sensitive=False)()


@pytest.mark.parametrize("main", [count, in_a_thread])
@pytest.mark.usefixtures("watch_every_thread")
def test_no_permit_is_taken(main: Main, server_loop: asyncio.AbstractEventLoop) -> None:
    """What the threads of another loop hold is none of what a ceiling allows to workers."""

    def task() -> tuple[int, int]:
        elsewhere = asyncio.run_coroutine_threadsafe(main(), server_loop)
        return Entry.objects.count(), elsewhere.result(20)

    with ceiling(1, timeout=20.0), ThreadPoolExecutor(2) as pool:
        assert pool.submit(task).result(30) == (0, 0)
        assert pool.submit(Entry.objects.count).result(30) == 0
        assert pool.stats().connections_opened == 2


def submit_from_this_thread(submit: Callable[..., Any], *arguments: Any) -> Any:
    return submit(*arguments).result(20)


def submit_from_a_request(submit: Callable[..., Any], *arguments: Any) -> Any:
    """As Django's ASGIHandler runs a sync view."""

    async def request() -> Any:
        async with ThreadSensitiveContext():
            return await sync_to_async(submit_from_this_thread)(submit, *arguments)

    return asyncio.run(request())


@pytest.mark.parametrize("inherit_context", [True, False])
@pytest.mark.parametrize("way", [submit_from_this_thread, submit_from_a_request])
@pytest.mark.usefixtures("watch_every_thread")
def test_contexts_of_their_own(way: Callable[..., Any], inherit_context: bool) -> None:
    """In a task's loop, coroutines that enter asgiref's ThreadSensitiveContext run side by side."""
    barrier = threading.Barrier(4)

    def meet() -> threading.Thread:
        barrier.wait(20)
        assert Entry.objects.count() == 0
        return threading.current_thread()

    async def coroutine() -> threading.Thread:
        async with ThreadSensitiveContext():
            return await sync_to_async(meet)()

    async def main() -> list[threading.Thread]:
        return await asyncio.gather(*(coroutine() for _ in range(4)))

    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        assert len(set(way(pool.submit, through_asyncio_run, main))) == 4
        assert wait_until(all_connections, lambda found: not found, within=20) == ()
        # And in none of their own, in one thread of the worker's, which ends with the task.
        assert way(pool.submit, with_asyncio_run) == 0
        assert all_connections() == ()


@pytest.mark.parametrize(
    ("main", "run"),
    [(in_a_thread, through_asyncio_run), (not_thread_sensitive, through_async_to_sync)],
)
@pytest.mark.usefixtures("watch_every_thread")
def test_other_threads(main: Main, run: Run, postgres: PostgresObserver) -> None:
    """With the app, the threads of a task's loop close what they opened when they end."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, main).result(20) == 0
        assert wait_until(all_connections, lambda found: not found, within=20) == ()
        assert not postgres.left()
