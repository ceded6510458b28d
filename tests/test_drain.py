"""`drain`: it returns when every executor of this process is idle and holds nothing, and no earlier."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

from django_executors import ImmediateExecutor, ThreadPoolExecutor, all_connections
from django_executors.testing import ExecutorTestMixin, drain, run_inline

from .keeping import results
from .observers import PostgresObserver
from .test_fork import fork
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")

IDLE = 60.0


def is_idle() -> bool:
    """Tell it without waiting."""
    try:
        drain(0)
    except TimeoutError:
        return False
    return True


@pytest.fixture
def idle_before_and_after() -> Iterator[None]:
    """What the tests before this one left does not count, and this one leaves nothing to do."""
    drain()
    yield
    drain()


class Gate:
    """A task, or a callback, that runs until it is told to end."""

    def __init__(self) -> None:
        self._begun, self._go_on = threading.Semaphore(0), threading.Event()
        self.ended: list[int] = []

    def __call__(self, *_: object) -> None:
        self._begun.release()
        assert self._go_on.wait(20)
        self.ended.append(threading.get_ident())

    def wait_for(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._begun.acquire(timeout=10)

    def open(self) -> None:
        self._go_on.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def query(*_: object) -> str:
    Entry.objects.count()
    return threading.current_thread().name


def assert_holds_nothing(postgres: PostgresObserver) -> None:
    """Nothing is open at this very moment; the server has yet to notice."""
    assert all_connections() == ()
    assert not postgres.left()


def check_accounting(pool: ThreadPoolExecutor) -> None:
    """The pool works, and counts right: busy while a task runs, idle when it has ended."""
    for _ in range(2):
        gate = Gate()
        pool.submit(gate)
        gate.wait_for()
        assert not is_idle()
        gate.open()
        drain()
        assert gate.ended
        assert is_idle()


def test_nothing_to_do() -> None:
    """It returns at once, without a look at the clock, where nothing was ever to do, or all is done."""
    drain(0)
    pool = ThreadPoolExecutor(2)
    drain(0)
    pool.submit(query).result(10)
    drain()
    drain(0)
    pool.shutdown()
    drain(0)


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_waits_for_tasks(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """It waits for those that run and for those that are queued, of every executor."""
    pools = [ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) for _ in range(2)]
    for pool in pools:
        pool.submit(gate)
    gate.wait_for(2)
    queued = [pool.submit(query) for pool in pools for _ in range(3)]
    assert not is_idle()
    drained = threading.Event()
    waiting = threading.Thread(target=lambda: (drain(), drained.set()))
    waiting.start()
    assert not drained.wait(0.05)
    gate.open()
    assert drained.wait(10)
    assert [future.done() for future in queued] == [True] * 6
    assert_holds_nothing(postgres)
    waiting.join(10)
    for pool in pools:
        check_accounting(pool)


def test_waits_for_callbacks(gate: Gate) -> None:
    """A future that is done is not enough: its callbacks have to end too."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    future = pool.submit(before)
    future.add_done_callback(gate)
    before.open()
    future.result(10)
    gate.wait_for()
    with pytest.raises(TimeoutError, match="busy=1 pending=0 tasks=None"):
        drain(0)
    gate.open()
    drain()
    assert len(gate.ended) == 1
    check_accounting(pool)


def test_waits_for_initializers(gate: Gate) -> None:
    """A worker in its initializer is busy, although another has done all the tasks."""
    second_only = itertools.count()

    def initializer() -> None:
        if next(second_only):
            gate()

    pool = ThreadPoolExecutor(2, initializer=initializer)
    first = Gate()
    futures = [pool.submit(first), pool.submit(query)]
    gate.wait_for()
    first.open()
    results(futures)
    assert not is_idle()
    gate.open()
    drain()
    check_accounting(pool)


def test_says_what_is_left(gate: Gate) -> None:
    """Its error says of each executor how many workers are busy, how much is queued, and what runs."""
    reports, mails = ThreadPoolExecutor(2, "reports"), ThreadPoolExecutor(1, "mails")

    def render() -> None:
        gate()

    def send() -> None:
        gate()

    for _ in range(5):
        reports.submit(functools.partial(render))
    mails.submit(send)
    gate.wait_for(3)
    with pytest.raises(TimeoutError) as caught:
        drain(0.02)
    first, *others = str(caught.value).splitlines()
    name = f"{__name__}.test_says_what_is_left.<locals>"
    assert first == "not idle after 0.02 seconds:"
    assert others == [
        f"executor=reports busy=2 pending=3 tasks={name}.render, {name}.render",
        f"executor=mails busy=1 pending=0 tasks={name}.send",
    ]


def test_in_a_worker() -> None:
    """A task, a callback and an initializer would wait for themselves: they are refused at once."""
    refused: list[str] = []

    def try_to(*_: object) -> None:
        with contextlib.suppress(TimeoutError):
            try:
                drain(0)
            except RuntimeError as error:
                refused.append(str(error))

    before = Gate()
    pool = ThreadPoolExecutor(1, initializer=try_to)
    pool.submit(before).add_done_callback(try_to)
    pool.submit(try_to)
    before.open()
    drain()
    assert len(refused) == 3
    assert all(re.search(r"drain\(\) was called in", message) for message in refused)


def test_in_the_callers_thread() -> None:
    """A task that runs where it was submitted may drain: it is no worker's."""
    ImmediateExecutor().submit(drain, 0).result(0)
    with run_inline(), ThreadPoolExecutor(1) as pool:
        pool.submit(drain, 0).result(0)


@pytest.mark.usefixtures("conn_max_age")
def test_kept_while_idle(postgres: PostgresObserver) -> None:
    """Idle workers that keep a connection let go of it at once, and are as many as before."""
    workers, rounds = 4, 3
    pool = ThreadPoolExecutor(workers, conn_max_idle=IDLE)
    barrier = threading.Barrier(workers)

    def task() -> str:
        barrier.wait(10)
        return query()

    names = set()
    for _ in range(rounds):
        names |= set(results([pool.submit(task) for _ in range(workers)]))
        assert len(postgres.backends()) == workers
        drain(5)
        assert_holds_nothing(postgres)
    assert len(names) == workers
    check_accounting(pool)


@pytest.mark.usefixtures("conn_max_age")
def test_no_phantom_worker() -> None:
    """Draining makes no worker look idle that is not: a task may still wait for one that it submits."""
    pool = ThreadPoolExecutor(2, conn_max_idle=IDLE)
    for _ in range(20):
        pool.submit(query).result(10)
        drain()

    def outer() -> str:
        return pool.submit(query).result(10)

    assert pool.submit(outer).result(20)
    drain()
    check_accounting(pool)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Gate:
    """Hold up each close in a worker until the gate opens."""
    close, main = BaseDatabaseWrapper.close, threading.get_ident()

    def slow_close(self: BaseDatabaseWrapper) -> None:
        # Not current_thread(): where a thread has ended, it would leave a dummy.
        if self.connection is not None and threading.get_ident() != main:
            gate()
        close(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "close", slow_close)
    return gate


def test_waits_until_they_have_let_go(closing: Gate, postgres: PostgresObserver) -> None:
    """It returns when the kept connections are closed, not while they are being closed."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    pool.submit(query).result(10)
    assert not is_idle()
    closing.wait_for()
    assert not is_idle()
    closing.open()
    drain()
    assert_holds_nothing(postgres)


def test_waits_for_what_callbacks_opened(closing: Gate, postgres: PostgresObserver) -> None:
    """What a callback opened is closed, too, when it returns."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    before.open()
    closing.wait_for()
    assert not is_idle()
    closing.open()
    drain()
    assert_holds_nothing(postgres)
    check_accounting(pool)


def test_waits_for_workers_that_end(closing: Gate, postgres: PostgresObserver) -> None:
    """A worker that ends holds nothing any more when it returns: its end closes what is left."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    pool.shutdown(wait=False)
    before.open()
    closing.wait_for()
    assert not is_idle()
    closing.open()
    drain()
    assert_holds_nothing(postgres)


def test_sqlite_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite in memory, which Django never closes, does not hold it up."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": 60}
    monkeypatch.setitem(connections.settings, "memory", entry)

    def task() -> None:
        connections["memory"].ensure_connection()

    for conn_max_idle in (0.0, IDLE):
        with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
            pool.submit(task).result(10)
            drain(5)
            check_accounting(pool)


def test_cancelled_futures(gate: Gate) -> None:
    """A future that was cancelled while it was queued is no work left."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    queued = [pool.submit(query) for _ in range(4)]
    assert [future.cancel() for future in queued[:3]] == [True] * 3
    assert not is_idle()
    gate.open()
    drain()
    assert queued[3].done()
    check_accounting(pool)


def cancel_outside(pool: ThreadPoolExecutor, gate: Gate) -> None:
    pool.submit(gate)
    gate.wait_for()
    for _ in range(3):
        pool.submit(query)
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
    pool.submit(gate)
    gate.wait_for()
    for _ in range(3):
        pool.submit(query)
    other = ThreadPoolExecutor(1)
    other.submit(pool.shutdown, wait=False, cancel_futures=True).result(10)


def cancel_in_another_pools_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    pool.submit(gate)
    gate.wait_for()
    for _ in range(3):
        pool.submit(query)
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
    with pytest.raises(TimeoutError, match="busy=1 pending=0"):
        drain(0)
    gate.open()
    drain()
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
    assert not is_idle()
    gate.open()
    drain()
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
    with pytest.raises(TimeoutError, match="busy=1 pending=0"):
        drain(0)
    gate.open()
    drain()
    assert_holds_nothing(postgres)
    check_accounting(pool)


def test_tasks_that_no_worker_will_take() -> None:
    """Where callbacks have ended all workers, as in the standard pool, it says what is queued."""
    pool = ThreadPoolExecutor(1)
    end_worker(pool)
    queued = pool.submit(query)
    with pytest.raises(TimeoutError, match="busy=0 pending=1 tasks=None"):
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
    assert not is_idle()
    gate.open()
    drain()
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
    with pytest.raises(TimeoutError, match="busy=2 pending=3"):
        drain(0)
    gate.open()
    drain()
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
    assert not is_idle()
    gate.open()
    drain()
    assert queued.done()
    for one in (pool, idle):
        check_accounting(one)


def test_fork_in_a_task() -> None:
    """A child that a task forks returns to that task's end, and the parent counts as before."""
    pool = ThreadPoolExecutor(1)
    assert pool.submit(fork, int).result(10) == (0, "")
    drain()
    check_accounting(pool)


@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_counts_under_load(conn_max_idle: float, postgres: PostgresObserver) -> None:
    """Threads submit at once, tasks submit tasks, callbacks query: every task is counted once."""
    submitters, tasks = 4, 60
    pool = ThreadPoolExecutor(8, conn_max_idle=conn_max_idle)
    done: list[object] = []

    def nested(number: int) -> None:
        if number % 10 == 0:
            query()
        pool.submit(done.append, number)

    def submit() -> None:
        for number in range(tasks):
            pool.submit(nested, number).add_done_callback(done.append)
            if number % 20 == 0:
                drain(20)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=submit) for _ in range(submitters)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        drain()
    finally:
        sys.setswitchinterval(before)
    assert len(done) == 2 * submitters * tasks
    assert_holds_nothing(postgres)
    check_accounting(pool)


def run_case(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def test_mixin_drains_before_the_flush() -> None:
    """What a test's tasks write after its end is gone with the rest of what it wrote."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    gate = Gate()

    def write_later() -> None:
        gate()
        wait_until(lambda: False, within=0.2)  # the test is over, and draining begins
        Entry.objects.create(name="written late")

    class Case(ExecutorTestMixin, TransactionTestCase):
        def test(self) -> None:
            futures.append(pool.submit(write_later))
            self.addCleanup(gate.open)

    futures: list[Future[None]] = []
    run_case(Case)
    (future,) = futures
    assert future.done()
    assert future.exception() is None
    assert Entry.objects.count() == 0
    connection.close()
    assert is_idle()


def test_mixin_drains_when_the_class_is_done() -> None:
    """What its own class set-up and tear-down left to do is done when the class is."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)

    class Case(ExecutorTestMixin, TransactionTestCase):
        @classmethod
        def tearDownClass(cls) -> None:
            super().tearDownClass()
            pool.submit(wait_until, lambda: False, within=0.1)
            pool.submit(query)

        def test(self) -> None:
            pass

    run_case(Case)
    connection.close()
    assert all_connections() == ()
    assert is_idle()
