"""A wait of a worker for its own pool that could never end gets `DeadlockError`."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_executors import DeadlockError, ExecutorError, ThreadPoolExecutor

from .draining import query
from .gates import Gate
from .observers import PostgresObserver
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


def inner() -> int:
    return 7


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_one_worker(ask: str) -> None:
    """A task that waits for another in a pool of one hears which waits for which; the other one runs."""
    children: list[concurrent.futures.Future[int]] = []

    def outer() -> None:
        children.append(pool.submit(inner))
        getattr(children[0], ask)()

    with ThreadPoolExecutor(1, "of the test") as pool:
        error = pool.submit(outer).exception(10)
        assert isinstance(error, DeadlockError)
        assert isinstance(error, ExecutorError)
        assert isinstance(error, RuntimeError)
        said, *waits, way_out = str(error).splitlines()
        assert said.endswith("could never end: executor=of the test workers=1 waiting=1 pending=1")
        outer_name = "tests.test_deadlocks.test_one_worker.<locals>.outer"
        assert waits == [f"task={outer_name} waits for task=tests.test_deadlocks.inner"]
        assert way_out == "Submit from outside of the pool's tasks, or to a second pool."
        assert children[0].result(10) == 7


def test_all_workers(postgres: PostgresObserver) -> None:
    """Of four tasks that all wait for a task of their own, one gets the error and the others go on."""
    barrier = threading.Barrier(4)

    def outer() -> int:
        query()
        barrier.wait(10)
        return pool.submit(inner).result()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(outer) for _ in range(4)]
        errors = [future.exception(20) for future in futures]
        assert sorted(map(type, errors), key=repr) == sorted(
            [DeadlockError, *[type(None)] * 3], key=repr
        )
        assert not postgres.left()


def test_a_caught_error() -> None:
    """A task that catches it may go on, each further wait hears it too, and what it waited for runs."""
    children: list[concurrent.futures.Future[int]] = []

    def outer() -> str:
        children.append(pool.submit(inner))
        for _ in range(3):
            with pytest.raises(DeadlockError):
                children[0].result()
        return "done"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outer).result(10) == "done"
        assert children[0].result(10) == 7


def test_a_ring() -> None:
    """Tasks that wait for one another, or for themselves, get it, however many workers are free."""
    futures: list[concurrent.futures.Future[Any]] = []
    all_there = threading.Event()

    def wait_for(number: int) -> Any:
        assert all_there.wait(10)
        return futures[number].result()

    with ThreadPoolExecutor(8) as pool:
        futures += [pool.submit(wait_for, number) for number in (1, 2, 0)]
        futures.append(pool.submit(wait_for, 3))
        all_there.set()
        assert isinstance(futures[3].exception(10), DeadlockError)
        assert all(isinstance(future.exception(10), DeadlockError) for future in futures[:3])


def test_no_trace_of_a_caught_error(gate: Gate) -> None:
    """A worker that has caught it waits no more, and so another one may."""

    def catch() -> None:
        with pytest.raises(DeadlockError):
            futures[0].result()
        gate()

    futures: list[concurrent.futures.Future[Any]] = []
    with ThreadPoolExecutor(2) as pool:
        ready = threading.Event()
        futures.append(pool.submit(lambda: ready.wait(10) and catch()))
        ready.set()
        gate.wait_for()
        waiting = pool.submit(lambda: pool.submit(inner).result())
        gate.open()
        assert waiting.result(10) == 7


def with_a_callback(pool: ThreadPoolExecutor) -> int:
    """A callback waits for a task that asks for the result of the one that it is of, which is there."""
    gate, results = Gate(), []

    def callback(future: concurrent.futures.Future[int]) -> None:
        def ask() -> int:
            wait_until(lambda: pool._work.waits._futures)
            return future.result()

        results.append(pool.submit(ask).result())

    first = pool.submit(lambda: (gate(), 7)[1])
    first.add_done_callback(callback)
    gate.open()
    assert wait_until(lambda: results, within=10) == [7]
    return first.result(10)


def with_room(pool: ThreadPoolExecutor) -> int:
    """Another worker is free."""
    return pool.submit(lambda: pool.submit(inner).result()).result(10)


def of_another_pool(pool: ThreadPoolExecutor) -> int:
    """The task waits for a pool that is not its own."""
    with ThreadPoolExecutor(1) as other:
        futures = [pool.submit(lambda: other.submit(inner).result()) for _ in range(4)]
        return max(future.result(10) for future in futures)


def of_a_done_one(pool: ThreadPoolExecutor) -> int:
    """What it asks for is there already."""
    done = pool.submit(inner)
    done.result(10)
    barrier = threading.Barrier(2)

    def ask() -> int:
        barrier.wait(10)
        return done.result()

    return max(future.result(10) for future in [pool.submit(ask), pool.submit(ask)])


def from_outside(pool: ThreadPoolExecutor) -> int:
    """Threads that are no workers wait, as many as there are workers."""
    gate = Gate()
    for _ in range(2):
        pool.submit(gate)
    gate.wait_for(2)
    future = pool.submit(inner)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(future.result) for _ in range(2)]
        gate.open()
        return max(each.result(10) for each in waiting)


def for_a_running_one(pool: ThreadPoolExecutor) -> int:
    """One worker waits for what the other one does, which waits for nothing."""
    gate = Gate()
    running = pool.submit(lambda: (gate(), 7)[1])
    gate.wait_for()
    waiting = pool.submit(lambda: running.result())
    assert wait_until(lambda: pool.stats().busy) == 2
    gate.open()
    return waiting.result(10)


@pytest.mark.parametrize(
    "do", [with_a_callback, with_room, of_another_pool, of_a_done_one, from_outside, for_a_running_one]
)
def test_is_silent(do: Callable[[ThreadPoolExecutor], int]) -> None:
    """Waits that can end go on as they always did."""
    with ThreadPoolExecutor(2) as pool:
        assert do(pool) == 7


def test_with_a_timeout() -> None:
    """A wait with a timeout ends by itself, with the standard error, and then the others go on."""

    both_run = threading.Barrier(2)

    def patient() -> int:
        both_run.wait(10)
        return pool.submit(inner).result()

    def outer() -> int:
        both_run.wait(10)
        child = pool.submit(inner)
        with pytest.raises(TimeoutError):
            child.result(0.05)
        return 7

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(patient), pool.submit(outer)]
        assert [future.result(10) for future in futures] == [7, 7]


def test_many_rounds() -> None:
    """Whatever the timing: each task of such a pool ends, with its result or with the error."""

    def outer(depth: int) -> int:
        return 7 if depth == 0 else pool.submit(outer, depth - 1).result()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(200):
            futures = [pool.submit(outer, 2) for _ in range(4)]
            for future in futures:
                error = future.exception(20)
                assert error is None or isinstance(error, DeadlockError)
