"""`drain` counts right after what ends oddly: cancelled, failed, dropped, forked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor
from django_executors.testing import drain

from .draining import IDLE, assert_holds_nothing, check_accounting, drain_through, is_idle, occupy, query
from .gates import Gate
from .observers import PostgresObserver
from .test_fork import fork
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


def test_cancelled_futures(gate: Gate) -> None:
    """A future that was cancelled while it was queued is no work left."""
    pool = ThreadPoolExecutor(1)
    queued = occupy(pool, gate, queued=4)
    assert [future.cancel() for future in queued[:3]] == [True] * 3
    drain_through(gate)
    assert queued[3].done()
    check_accounting(pool)


def cancel_outside(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    pool.shutdown(wait=False, cancel_futures=True)


def cancel_in_a_task(pool: ThreadPoolExecutor, gate: Gate) -> None:
    ready = threading.Event()

    def task() -> None:
        assert ready.wait(10)
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    pool.submit(task)
    for _ in range(3):
        pool.submit(query)
    ready.set()
    gate.wait_for()


def cancel_in_a_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    before = Gate()

    def callback(_: object) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    pool.submit(before).add_done_callback(callback)
    for _ in range(3):
        pool.submit(query)
    before.open()
    gate.wait_for()


def cancel_in_another_pools_task(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    other = ThreadPoolExecutor(1)
    other.submit(pool.shutdown, wait=False, cancel_futures=True).result(10)


def cancel_in_another_pools_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    before, done, other = Gate(), threading.Event(), ThreadPoolExecutor(1)

    def callback(_: object) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        done.set()

    other.submit(before).add_done_callback(callback)
    before.open()
    assert done.wait(10)
    check_accounting_beside(other)


def check_accounting_beside(other: ThreadPoolExecutor) -> None:
    """The other pool's worker goes on to its next task, while the first pool is busy."""
    assert other.submit(query).result(10)


CANCELLED = [
    cancel_outside,
    cancel_in_a_task,
    cancel_in_a_callback,
    cancel_in_another_pools_task,
    cancel_in_another_pools_callback,
]


@pytest.mark.parametrize("cancel", CANCELLED, ids=lambda cancel: cancel.__name__)
def test_shutdown_that_cancels(
    cancel: Callable[[ThreadPoolExecutor, Gate], None], gate: Gate, postgres: PostgresObserver
) -> None:
    """After `shutdown(cancel_futures=True)`, from anywhere, what still runs is all that is left."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    cancel(pool, gate)
    wait_until(is_idle, within=0.05)  # the other pool's worker, if there is one, becomes idle
    drain_through(gate, "busy=1 pending=0")
    assert len(gate.ended) == 1
    assert_holds_nothing(postgres)


def test_failed_initializer(gate: Gate, postgres: PostgresObserver) -> None:
    """Tasks whose initializer failed are no work left; while it ran, they were."""

    def initializer() -> None:
        query()
        gate()
        raise LookupError("of the initializer")

    pool = ThreadPoolExecutor(1, initializer=initializer)
    futures = [pool.submit(query) for _ in range(3)]
    gate.wait_for()
    drain_through(gate)
    for future in futures:
        assert isinstance(future.exception(0), BrokenThreadPool)
    assert_holds_nothing(postgres)


def end_worker(pool: ThreadPoolExecutor) -> None:
    """Have a callback end one worker of this pool."""
    before, ended = Gate(), threading.Event()
    threads: list[threading.Thread] = []

    def callback(_: object) -> None:
        query()
        threads.append(threading.current_thread())
        ended.set()
        raise SystemExit

    pool.submit(before).add_done_callback(callback)
    before.open()
    assert ended.wait(10)
    threads[0].join(10)


def test_worker_that_a_callback_ended(gate: Gate, postgres: PostgresObserver) -> None:
    """A callback that ends its worker has ended: the other workers count on, and it does not."""
    pool = ThreadPoolExecutor(3)
    pool.submit(gate)
    gate.wait_for()
    end_worker(pool)
    drain_through(gate, "busy=1 pending=0")
    assert_holds_nothing(postgres)
    check_accounting(pool)


def test_tasks_that_no_worker_will_take() -> None:
    """Where callbacks have ended all workers, as in the standard pool, it says what is queued."""
    pool = ThreadPoolExecutor(1)
    end_worker(pool)
    queued = pool.submit(query)
    with pytest.raises(TimeoutError, match=r"busy=0 pending=1 tasks=$"):
        drain(0)
    pool.shutdown(wait=False, cancel_futures=True)
    drain()
    assert queued.cancelled()


def test_worker_with_another_name(gate: Gate) -> None:
    """A task may give its thread another name: the worker lives on, and counts."""
    before, pool = Gate(), ThreadPoolExecutor(1)

    def task() -> None:
        threading.current_thread().name = "of the task"
        before()

    pool.submit(task).add_done_callback(gate)
    before.open()
    gate.wait_for()
    drain_through(gate)
    check_accounting(pool)


@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_dropped_executor(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """An executor that nobody refers to any more counts until its workers are done."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(2, conn_max_idle=conn_max_idle)
    assert pool is not None
    futures: list[Future[Any]] = [pool.submit(gate) for _ in range(2)]
    futures += [pool.submit(query) for _ in range(3)]
    gate.wait_for(2)
    pool = None
    drain_through(gate, "busy=2 pending=3")
    assert all(future.done() for future in futures)
    assert_holds_nothing(postgres)


def test_fork_with_work_in_progress(gate: Gate) -> None:
    """In a forked child nothing is left to do: the threads are the parent's, which counts on."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    idle = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    idle.submit(query).result(10)

    def task() -> None:
        query()
        gate()

    pool.submit(task)
    gate.wait_for()
    queued = pool.submit(query)

    def child() -> None:
        drain(0)
        check_accounting(ThreadPoolExecutor(1))
        drain(0)

    assert fork(child) == (0, "")
    drain_through(gate)
    assert queued.done()
    for one in (pool, idle):
        check_accounting(one)


def test_fork_in_a_task() -> None:
    """A child that a task forks returns to that task's end, and the parent counts as before."""
    pool = ThreadPoolExecutor(1)
    assert pool.submit(fork, int).result(10) == (0, "")
    drain()
    check_accounting(pool)
