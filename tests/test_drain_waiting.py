"""`drain` waits for tasks, callbacks and initializers, and says what is left when its time is up."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import threading

import pytest

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import drain, run_inline

from .draining import IDLE, assert_holds_nothing, check_accounting, drain_through, is_idle, query
from .gates import Gate
from .keeping import results
from .observers import PostgresObserver

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


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
    drain_through(gate, "busy=1 pending=0 tasks=a callback or an initializer")
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
    drain_through(gate)
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
