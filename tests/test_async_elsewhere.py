"""Async code that a task gives to a loop of somebody else's, or has in a context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.cache import caches
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.lifecycle.holder import current_holder

from .asgi_tasks import count, with_asyncio_run
from .ceilings import ceiling
from .observers import PostgresObserver
from .subprocesses import run_python
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")

WORKERS = 8
Submit = Callable[..., Any]
Main = Callable[[], Coroutine[Any, Any, int]]


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
def test_no_permit_is_taken(main: Main, server_loop: asyncio.AbstractEventLoop) -> None:
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
def test_other_threads(main: Main, run: Callable[[Any], int], postgres: PostgresObserver) -> None:
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
