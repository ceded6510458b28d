"""`shutdown(timeout=…)`: it returns at the deadline, and what it names did not run."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline

from .draining import IDLE, assert_holds_nothing, is_idle, occupy, query
from .gates import Gate
from .observers import PostgresObserver
from .shutting import beside, index, left
from .test_context_edges import is_gone, submit_with_a_thing

pytestmark = pytest.mark.usefixtures("collector_off")


def test_all_done_before(caplog: pytest.LogCaptureFixture, postgres: PostgresObserver) -> None:
    """It returns when all has run, without a word: no worker and no connection is left."""
    pool = ThreadPoolExecutor(4, "of the test", conn_max_idle=IDLE)
    futures = [pool.submit(query) for _ in range(20)]
    pool.shutdown(timeout=20)
    assert_holds_nothing(postgres)
    assert all(future.result(0) for future in futures)
    assert not [t for t in threading.enumerate() if t.name.startswith("of the test")]
    assert left(caplog) == []


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_deadline(
    timeout: float, gate: Gate, caplog: pytest.LogCaptureFixture, postgres: PostgresObserver
) -> None:
    """What has not begun is cancelled, what runs goes on, and one error says how many of each."""
    pool = ThreadPoolExecutor(1, "of the test")
    running = pool.submit(lambda: (query(), gate()))
    gate.wait_for()
    pending = [pool.submit(task) for task in (query, index, query)]
    pool.shutdown(timeout=timeout)
    assert all(future.cancelled() for future in pending)
    assert left(caplog) == [
        (
            f"executor=of the test timeout={float(timeout)} shutdown left "
            "running=1 (tests.test_shutdown.test_deadline.<locals>.<lambda> x1) "
            "not_run=3 (tests.draining.query x2, tests.shutting.index x1)"
        )
    ]
    assert caplog.records[-1].levelname == "ERROR"
    assert not is_idle()
    gate.open()
    running.result(10)
    pool.shutdown(timeout=20)
    assert_holds_nothing(postgres)
    assert is_idle()
    assert len(left(caplog)) == 1


def test_waiters_wake(gate: Gate) -> None:
    """Whoever waits for a task that is cancelled at the deadline waits no longer."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 3)
    with beside(lambda: concurrent.futures.wait(pending, 20)) as waited:
        pool.shutdown(timeout=0)
        assert waited.result(10) == (set(pending), set())
    assert set(concurrent.futures.as_completed(pending, 0)) == set(pending)


def test_refuses_while_it_waits(gate: Gate) -> None:
    """New work is refused from the beginning; what was submitted before runs until the deadline."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 1)
    with beside(lambda: pool.shutdown(timeout=60)) as ended:
        refused = False
        while not refused and not ended.done():
            try:
                pending.append(pool.submit(query))
            except RuntimeError:
                refused = True
        assert not ended.done()
        gate.open()
        ended.result(20)
    assert all(future.result(0) for future in pending)


def test_cancel_futures(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """With `cancel_futures` the queued are cancelled at once and named, the running waited for."""
    pool = ThreadPoolExecutor(1, "of the test")
    pending = occupy(pool, gate, 3)
    with beside(lambda: pool.shutdown(cancel_futures=True, timeout=60)) as ended:
        assert concurrent.futures.wait(pending, 10).not_done == set()
        assert not ended.done()
        gate.open()
        ended.result(20)
    assert all(future.cancelled() for future in pending)
    assert gate.ended
    assert left(caplog) == [
        "executor=of the test timeout=60.0 shutdown left running=0 not_run=3 (tests.draining.query x3)"
    ]


def test_cancelled_by_its_submitter(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """What its submitter has cancelled is not named."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    assert pool.submit(query).cancel()
    pool.shutdown(timeout=0)
    assert left(caplog)[0].endswith("running=1 (tests.gates.Gate x1) not_run=0")


@pytest.mark.usefixtures("caplog")
@pytest.mark.parametrize("cancel_futures", [False, True])
def test_context_is_let_go(cancel_futures: bool, gate: Gate) -> None:
    """The context of a task that did not run is gone, while its future is kept and the worker busy."""
    pool = ThreadPoolExecutor(1)
    futures = occupy(pool, gate, 0)
    thing = submit_with_a_thing(lambda: futures.append(pool.submit(query)))
    pool.shutdown(cancel_futures=cancel_futures, timeout=0)
    assert futures[0].cancelled()
    assert is_gone(thing)


def test_waiting_workers_end(gate: Gate) -> None:
    """Workers that wait for work at the deadline end, though another one is busy."""
    pool = ThreadPoolExecutor(3, "of the test")
    occupy(pool, gate, 0)
    barrier = threading.Barrier(2)
    concurrent.futures.wait([pool.submit(barrier.wait, 10) for _ in range(2)], 20)
    (busy,) = (t for t in threading.enumerate() if t.name == "of the test_0")
    others = [t for t in threading.enumerate() if t.name in ("of the test_1", "of the test_2")]
    pool.shutdown(timeout=0)
    for thread in others:
        thread.join(10)
        assert not thread.is_alive()
    assert busy.is_alive()


def test_context_is_let_go_by_a_broken_pool(gate: Gate) -> None:
    """Nor does a pool whose initializer fails keep the context of a task that it has refused."""

    def initialize() -> None:
        gate()
        raise ZeroDivisionError

    pool = ThreadPoolExecutor(1, initializer=initialize)
    futures: list[concurrent.futures.Future[str]] = []
    thing = submit_with_a_thing(lambda: futures.append(pool.submit(query)))
    gate.open()
    assert isinstance(futures[0].exception(10), BrokenThreadPool)
    assert is_gone(thing)
    pool.shutdown(timeout=20)


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_workers_that_are_dead(
    cancel_futures: bool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody is left to run is cancelled and named, long before the deadline."""

    def end_thread(_: object) -> None:
        raise SystemExit

    pool = ThreadPoolExecutor(1, "of the test")
    ends = pool.submit(gate)
    ends.add_done_callback(end_thread)
    gate.wait_for()
    (worker,) = (t for t in threading.enumerate() if t.name == "of the test_0")
    pending = [pool.submit(query) for _ in range(2)]
    gate.open()
    worker.join(10)
    pool.shutdown(cancel_futures=cancel_futures, timeout=threading.TIMEOUT_MAX * 2)
    assert all(future.cancelled() for future in pending)
    assert left(caplog)[0].endswith("running=0 not_run=2 (tests.draining.query x2)")
    assert is_idle()


def test_run_inline(caplog: pytest.LogCaptureFixture) -> None:
    """Under `run_inline` there is nothing to wait for, and tasks are refused from then on."""
    with run_inline():
        pool = ThreadPoolExecutor(1)
        assert pool.submit(int).result(0) == 0
        pool.shutdown(timeout=60)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(int)
    assert left(caplog) == []


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timeout": "5"}, TypeError, "^timeout must be a number of seconds, not '5'$"),
    ({"timeout": True}, TypeError, "^timeout must be a number of seconds, not True$"),
    ({"timeout": -1}, ValueError, "^timeout must be 0 or more seconds, not -1$"),
    ({"timeout": float("nan")}, ValueError, "^timeout must be 0 or more seconds, not nan$"),
    ({"timeout": 5, "wait": False}, ValueError, "^timeout says how long to wait: .*wait=False"),
]


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), ImmediateExecutor])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_timeout(
    make: Callable[[], Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A timeout that is none is refused by name, and the executor works on."""
    with make() as executor:
        with pytest.raises(error, match=message):
            executor.shutdown(**arguments)
        assert executor.submit(int).result(10) == 0


def test_immediate_executor() -> None:
    """There nothing is ever left: it returns at once."""
    executor = ImmediateExecutor()
    executor.shutdown(cancel_futures=True, timeout=60)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
