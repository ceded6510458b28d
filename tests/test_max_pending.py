"""`max_pending`: at most so many tasks are submitted and have not begun."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from typing import Any

import pytest

from django_executors import ExecutorError, QueueFull, ThreadPoolExecutor

from .blocked import blocked, full, submitter
from .draining import query
from .gates import Gate
from .observers import PostgresObserver
from .shutting import beside
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")
__all__ = ["submitter"]


def test_raises(gate: Gate) -> None:
    """With `when_full="raise"` a full queue refuses, with the numbers, until a task has begun."""
    pool = full(gate, when_full="raise")
    with pytest.raises(QueueFull, match=r"workers=1 busy=1 pending=2$") as caught:
        pool.submit(int)
    assert isinstance(caught.value, ExecutorError)
    assert isinstance(caught.value, queue.Full)
    assert pool.stats().rejected == 1
    gate.open()
    wait_until(pool.stats, lambda stats: stats.pending == 0)
    assert pool.submit(int).result(10) == 0
    assert (pool.stats().rejected, pool.stats().submitted) == (1, 4)
    pool.shutdown()


def test_blocks(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """By default `submit` waits until a task has begun, and then submits."""
    pool = full(gate)
    submitting = submitter.submit(pool.submit, int)
    assert wait_until(blocked)
    assert pool.stats().pending == 2
    gate.open()
    assert submitting.result(10).result(10) == 0
    pool.shutdown()
    assert pool.stats().rejected == 0


def test_cancelled_makes_room(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """A task that is cancelled gives its place to who waits, once, however often it is cancelled."""
    pool = ThreadPoolExecutor(1, max_pending=2)
    pool.submit(gate)
    gate.wait_for()
    pending = [pool.submit(int) for _ in range(2)]
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(blocked, lambda count: count == 2) == 2
    for _ in range(3):
        assert pending[0].cancel()
    done, waiting = concurrent.futures.wait(submitting, 10, return_when="FIRST_COMPLETED")
    assert (len(done), len(waiting)) == (1, 1)
    assert wait_until(blocked, lambda count: count == 1) == 1
    assert (pool.stats().pending, pool.stats().cancelled) == (2, 1)
    gate.open()
    assert all(future.result(10).result(10) == 0 for future in submitting)
    pool.shutdown()


@pytest.mark.parametrize("cancel_futures", [False, True])
@pytest.mark.parametrize("timeout", [None, 20])
def test_shutdown_wakes_up(
    cancel_futures: bool, timeout: float | None, gate: Gate, submitter: concurrent.futures.Executor
) -> None:
    """Submitters who wait hear the standard error when the pool is shut down, and none gets in."""
    pool = full(gate)
    submitting = [submitter.submit(pool.submit, int) for _ in range(4)]
    assert wait_until(blocked)
    with beside(lambda: pool.shutdown(cancel_futures=cancel_futures, timeout=timeout)):
        for future in submitting:
            with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
                future.result(10)
        gate.open()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    assert pool.stats().submitted == 3


def test_in_a_task(gate: Gate) -> None:
    """A worker never waits for room in its own pool: it hears `QueueFull` in the place of waiting."""
    pool = ThreadPoolExecutor(2, max_pending=1)
    pool.submit(gate)
    gate.wait_for()

    def submit_two() -> None:
        pool.submit(int)
        with pytest.raises(QueueFull, match="a worker of its own would wait for itself"):
            pool.submit(int)

    pool.submit(submit_two).result(10)
    gate.open()
    pool.shutdown()
    assert (pool.stats().submitted, pool.stats().rejected) == (3, 1)


def test_in_an_event_loop(gate: Gate) -> None:
    """Nor does a thread in which an event loop runs."""
    pool = ThreadPoolExecutor(1, max_pending=1)
    pool.submit(gate)
    gate.wait_for()

    async def submit_two() -> None:
        pool.submit(int)
        with pytest.raises(QueueFull, match="waiting would block the event loop"):
            pool.submit(int)

    asyncio.run(submit_two())
    gate.open()
    pool.shutdown()


@pytest.mark.timeout(300)
def test_many_submitters(postgres: PostgresObserver) -> None:
    """16 submitters and 100,000 tasks: never more than 100 pending, and each task runs exactly once."""
    count, submitters = 100_000, 16
    done: list[int] = []
    over: list[int] = []

    def submit(first: int) -> None:
        for number in range(first, count, submitters):
            pool.submit(done.append, number)
            if not 0 <= (pending := pool.stats().pending) <= 100:
                over.append(pending)

    pool = ThreadPoolExecutor(4, max_pending=100)
    with concurrent.futures.ThreadPoolExecutor(submitters) as threads:
        submitting = [threads.submit(submit, first) for first in range(submitters)]
        for each in submitting:
            each.result(200)
    pool.shutdown()
    assert over == []
    assert sorted(done) == list(range(count))
    assert (pool.stats().submitted, pool.stats().completed, pool.stats().pending) == (count, count, 0)


def test_inline_has_no_queue(gate: Gate) -> None:
    """Within `run_inline` tasks run at once, and nothing is pending."""
    from django_executors.testing import run_inline

    pool = ThreadPoolExecutor(1, max_pending=1, when_full="raise")
    with run_inline():
        assert [pool.submit(int).result() for _ in range(5)] == [0] * 5
    assert (pool.stats().completed, pool.stats().workers) == (5, 0)
    pool.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_pending": 0}, ValueError, "max_pending must be 1 or more, not 0"),
        ({"max_pending": -1}, ValueError, "max_pending must be 1 or more, not -1"),
        ({"max_pending": 1.5}, TypeError, "max_pending must be an int or None, not 1.5"),
        ({"max_pending": True}, TypeError, "max_pending must be an int or None, not True"),
        ({"max_pending": "8"}, TypeError, "max_pending must be an int or None, not '8'"),
        ({"when_full": "wait"}, ValueError, "when_full must be 'block' or 'raise', not 'wait'"),
        (
            {"when_full": "raise"},
            ValueError,
            "when_full='raise' needs max_pending, or the queue is never full",
        ),
        ({"when_full": None}, ValueError, "when_full must be 'block' or 'raise', not None"),
    ],
)
def test_wrong_values(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """A wrong value is refused by name, with what may be there."""
    with pytest.raises(error, match=f"^{said}$"):
        ThreadPoolExecutor(1, **options)


def test_holds_nothing(postgres: PostgresObserver) -> None:
    """A bounded pool lets go of its connections as any does."""
    with ThreadPoolExecutor(4, max_pending=2) as pool:
        futures = [pool.submit(query) for _ in range(200)]
        assert all(future.result(20) for future in futures)
        assert not postgres.left()
