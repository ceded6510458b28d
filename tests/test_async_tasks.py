"""Async code in a task: it ends, and what its ORM calls opened is let go before the future resolves."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async

from django_executors import ThreadPoolExecutor, all_connections

from .asgi_tasks import TASKS, count, with_asyncio_run
from .observers import PostgresObserver
from .serving import uvicorn
from .subprocesses import run_python
from .testapp.models import Entry

Task = Callable[[], int]
Main = Callable[[], Coroutine[Any, Any, None]]

MIDDLEWARE = {
    "no middleware": "",
    "sync middleware": "tests.asgi_tasks.sync_middleware",
    "both in turn": "tests.asgi_tasks.sync_middleware tests.asgi_tasks.async_middleware "
    "tests.asgi_tasks.sync_middleware",
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


@pytest.mark.usefixtures("collector_off", "conn_max_age")
@pytest.mark.parametrize("task", TASKS.values())
@pytest.mark.parametrize("way", WAYS)
def test_without_a_server(way: Callable[[Task], int], task: Task, postgres: PostgresObserver) -> None:
    """They end and leave nothing, from wherever they are submitted."""
    assert way(task) == 0
    assert not postgres.left()


@pytest.mark.usefixtures("collector_off", "conn_max_age")
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


@pytest.mark.usefixtures("collector_off", "conn_max_age")
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


@pytest.mark.usefixtures("collector_off", "conn_max_age")
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
from tests.asgi_tasks import count
from tests.waiting import wait_until

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
