"""asyncio takes the pool as its executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from django.db import connection
from django.utils import translation

from django_executors import ThreadPoolExecutor, all_connections

from .observers import PostgresObserver
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "conn_max_age")

T = TypeVar("T")
WORKERS = 8


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, for 30 seconds at the most, with nothing of the loop left for a collector."""

    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


def add(name: str) -> str:
    return Entry.objects.create(name=name).name


def seen_by_task(barrier: threading.Barrier) -> list[tuple[str | None, str | None]]:
    Entry.objects.count()
    barrier.wait(10)
    seen = [(info.executor, info.task) for info in all_connections()]
    barrier.wait(10)
    return seen


@contextlib.contextmanager
def nothing_left(postgres: PostgresObserver) -> Iterator[None]:
    yield
    assert all_connections() == ()
    assert not postgres.left()


def test_to_thread(postgres: PostgresObserver) -> None:
    """`asyncio.to_thread` on our pool as the loop's default gives the results, and nothing is left."""
    names = [f"entry {number}" for number in range(40)]

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
        with nothing_left(postgres):
            return await asyncio.gather(*(asyncio.to_thread(add, name) for name in names))

    assert run(main()) == names
    assert Entry.objects.count() == 40


def test_to_thread_carries_context(postgres: PostgresObserver) -> None:
    """What `asyncio.to_thread` copies reaches the task."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def task() -> tuple[str, int]:
        return variable.get(), Entry.objects.count()

    async def main() -> tuple[str, int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        variable.set("of the caller")
        with nothing_left(postgres):
            return await asyncio.to_thread(task)

    assert run(main()) == ("of the caller", 0)


def test_name_of_the_task() -> None:
    """`all_connections()` calls a task of `asyncio.to_thread` by its function's name."""
    barrier = threading.Barrier(2)

    async def main() -> list[list[tuple[str | None, str | None]]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2, "of the loop"))
        return await asyncio.gather(
            asyncio.to_thread(seen_by_task, barrier),
            asyncio.to_thread(functools.partial(seen_by_task, barrier=barrier)),
        )

    expected = [("of the loop", f"{__name__}.seen_by_task")] * 2
    assert run(main()) == [expected, expected]


def test_run_in_executor(postgres: PostgresObserver) -> None:
    """`loop.run_in_executor` takes the pool, without making it the default."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(WORKERS) as pool, nothing_left(postgres):
            return await asyncio.gather(
                *(loop.run_in_executor(pool, add, name) for name in ("a", "b", "c"))
            )

    assert run(main()) == ["a", "b", "c"]


def test_run_in_executor_carries_context() -> None:
    """The submitter's context variables and language reach the task; in a standard pool they do not."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="of nobody")

    def task() -> tuple[str, str | None]:
        return variable.get(), translation.get_language()

    async def main(pool: concurrent.futures.Executor) -> tuple[str, str | None]:
        variable.set("of the caller")
        with pool, translation.override("de"):
            return await asyncio.get_running_loop().run_in_executor(pool, task)

    assert run(main(ThreadPoolExecutor(1))) == ("of the caller", "de")
    assert run(main(concurrent.futures.ThreadPoolExecutor(1))) == ("of nobody", "en-us")


def test_wrap_future(postgres: PostgresObserver) -> None:
    """`asyncio.wrap_future` awaits a future of ours: its result or its exception."""

    def fails() -> None:
        Entry.objects.count()
        raise LookupError("of the task")

    async def main() -> None:
        pool = ThreadPoolExecutor(1)
        with nothing_left(postgres):
            assert await asyncio.wrap_future(pool.submit(add, "a")) == "a"
            with pytest.raises(LookupError, match="of the task"):
                await asyncio.wrap_future(pool.submit(fails))

    run(main())


def test_cancelled_await(postgres: PostgresObserver) -> None:
    """A task whose awaiter was cancelled lets go when it ends all the same."""
    started, go_on = threading.Event(), threading.Event()

    def task() -> None:
        Entry.objects.count()
        started.set()
        assert go_on.wait(10)

    async def main() -> None:
        pool = ThreadPoolExecutor(1)
        future = pool.submit(task)
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.to_thread(started.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        future.result(10)

    with nothing_left(postgres):
        run(main())


def test_end_of_the_loop(postgres: PostgresObserver) -> None:
    """`asyncio.run` waits for all that its default executor has to do, and leaves no thread."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, "of the loop"))
        await asyncio.to_thread(add, "awaited")
        for number in range(20):
            loop.run_in_executor(None, add, str(number))

    for runs in (1, 2):
        asyncio.run(main())
        assert all_connections() == ()
        assert not [t for t in threading.enumerate() if t.name.startswith("of the loop")]
        assert not postgres.left()
        assert Entry.objects.count() == runs * 21
        connection.close()


def test_one_executor_for_two_loops() -> None:
    """The first loop's end has shut it down."""
    pool = ThreadPoolExecutor(1)

    async def main() -> int:
        asyncio.get_running_loop().set_default_executor(pool)
        return await asyncio.to_thread(int)

    assert run(main()) == 0
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        run(main())


def test_shutdown_default_executor(postgres: PostgresObserver) -> None:
    """The loop shuts the pool down: its workers end, and it takes no more."""
    pool = ThreadPoolExecutor(WORKERS, "of the loop")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        await asyncio.gather(*(asyncio.to_thread(Entry.objects.count) for _ in range(WORKERS)))
        await loop.shutdown_default_executor()
        assert not [t for t in threading.enumerate() if t.name.startswith("of the loop")]

    with nothing_left(postgres):
        run(main())
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)
