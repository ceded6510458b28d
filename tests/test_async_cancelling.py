"""Cancelling the code that awaits a task cancels the task if it has not begun, and not if it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from django_executors import ThreadPoolExecutor, all_connections, connection_scope

from .gates import Gate
from .observers import PostgresObserver
from .test_asyncio import nothing_left, run
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")

Task = Callable[[], object]
Waiting = Coroutine[Any, Any, object]
#: Submits a task, and returns what is to be awaited.
Way = Callable[[ThreadPoolExecutor, Task], Awaitable[Awaitable[object]]]
#: Cancels the code that waits, when its task is in the queue.
Cancel = Callable[[Waiting, ThreadPoolExecutor], Awaitable[None]]


async def by_wrap_future(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.wrap_future(pool.submit(task))


async def by_run_in_executor(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.get_running_loop().run_in_executor(pool, task)


async def by_to_thread(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    asyncio.get_running_loop().set_default_executor(pool)
    return asyncio.to_thread(task)


@async_to_sync
async def coroutine(task: Task) -> object:
    return task()


async def as_a_coroutine(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.wrap_future(pool.submit(coroutine, task))


async def on_commit(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    submit = connection_scope(transaction.atomic(pool.submit_on_commit))
    return asyncio.wrap_future(await sync_to_async(submit)(task))


WAYS = [by_wrap_future, by_run_in_executor, by_to_thread, as_a_coroutine, on_commit]


async def wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


async def until(pool: ThreadPoolExecutor, number: str) -> None:
    """Return when there is one of them."""
    with ThreadPoolExecutor(1) as other:
        found = other.submit(wait_until, lambda: getattr(pool.stats(), number), within=10)
        assert await asyncio.wrap_future(found) == 1


async def by_cancel(waiting: Waiting, pool: ThreadPoolExecutor, number: str = "pending") -> None:
    task = asyncio.ensure_future(waiting)
    await until(pool, number)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(waiting: Waiting, pool: ThreadPoolExecutor) -> None:
    limit = asyncio.timeout(None)

    async def bounded() -> None:
        async with limit:
            await waiting

    task = asyncio.ensure_future(bounded())
    await until(pool, "pending")
    limit.reschedule(0)
    with pytest.raises(TimeoutError):
        await task


async def by_task_group(waiting: Waiting, pool: ThreadPoolExecutor) -> None:
    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        async with asyncio.TaskGroup() as group:
            group.create_task(waiting)
            await until(pool, "pending")
            raise LookupError("of its neighbour")


@pytest.mark.parametrize("cancel", [by_cancel, by_timeout, by_task_group])
@pytest.mark.parametrize("way", WAYS)
def test_not_begun(way: Way, cancel: Cancel, gate: Gate, postgres: PostgresObserver) -> None:
    """It is cancelled when its awaiter has heard of it, and never runs."""
    ran: list[str] = []

    async def main() -> None:
        pool.submit(gate)
        gate.wait_for()
        await cancel(wait_for(await way(pool, lambda: ran.append("the task"))), pool)
        stats = pool.stats()
        assert (stats.cancelled, stats.pending, stats.busy) == (1, 0, 1)
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert ran == []
    assert (pool.stats().completed, pool.stats().failed) == (1, 0)


def test_shielded(gate: Gate) -> None:
    """A task whose future is shielded is not cancelled with its awaiter."""

    async def main() -> None:
        pool.submit(gate)
        gate.wait_for()
        waiting = await by_wrap_future(pool, lambda: ran.append("the task"))
        await by_cancel(wait_for(asyncio.shield(waiting)), pool)
        gate.open()
        await asyncio.wrap_future(pool.submit(int))  # behind it

    ran: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        run(main())
    assert ran == ["the task"]


@pytest.mark.parametrize("way", WAYS)
def test_begun(way: Way, gate: Gate, postgres: PostgresObserver) -> None:
    """It runs to its end, and lets go then."""

    async def main() -> None:
        await by_cancel(wait_for(await way(pool, gate)), pool, "busy")
        assert pool.stats().busy == 1
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert len(gate.ended) == 1
    assert (pool.stats().completed, pool.stats().cancelled) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_begun_and_fails(way: Way, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of the error, of which asyncio drops all trace: the page warns of that."""

    def fails() -> None:
        gate()
        raise LookupError("of the task")

    async def main() -> None:
        await by_cancel(wait_for(await way(pool, fails)), pool, "busy")
        gate.open()

    with ThreadPoolExecutor(1) as pool:
        run(main())
    assert pool.stats().failed == 1
    assert caplog.records == []


def test_before_the_commit(gate: Gate) -> None:
    """Synchronous code goes on when its awaiter is cancelled, and what it submits at its commit runs."""
    ran: list[str] = []

    def place() -> None:
        with transaction.atomic():
            pool.submit_on_commit(lambda: ran.append("the task"))
            gate()

    async def main() -> None:
        waiting = asyncio.ensure_future(sync_to_async(connection_scope(place))())
        await asyncio.to_thread(gate.wait_for)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ran == []
        gate.open()

    pool = ThreadPoolExecutor(1)
    run(main())
    assert wait_until(lambda: ran, within=10) == ["the task"]
    assert wait_until(all_connections, lambda found: not found, within=10) == ()
