"""A bounded pool in trouble: nobody waits for ever, and no place is lost."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor

from .blocked import blocked, full, submitter
from .gates import Gate
from .subprocesses import run_python
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")
__all__ = ["submitter"]


class FailingInitializer(Gate):
    """An initializer that fails when it is told to."""

    def __call__(self, *_: object) -> None:
        super().__call__()
        raise LookupError


@pytest.fixture
def failing() -> Any:
    gate = FailingInitializer()
    yield gate
    gate.open()


def test_broken_pool(failing: Gate, submitter: concurrent.futures.Executor) -> None:
    """All submitters who wait hear that the initializer has failed."""
    pool = ThreadPoolExecutor(1, initializer=failing, max_pending=1)
    first = pool.submit(int)
    submitting = [submitter.submit(pool.submit, int) for _ in range(4)]
    assert wait_until(blocked, lambda count: count == 4) == 4
    failing.open()
    for future in [*submitting, first]:
        with pytest.raises(BrokenThreadPool):
            future.result(10)
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.pending, stats.busy) == (1, 1, 0, 0)


def test_broken_pool_with_cancelled_tasks(
    failing: Gate, submitter: concurrent.futures.Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that was cancelled before stays so, and those behind it hear that the pool is broken."""
    pool = ThreadPoolExecutor(1, initializer=failing, max_pending=3)
    pending = [pool.submit(int) for _ in range(3)]
    failing.wait_for()
    assert pending[0].cancel()
    pending.append(pool.submit(int))
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(blocked, lambda count: count == 2) == 2
    failing.open()
    for future in [*submitting, *pending[1:]]:
        with pytest.raises(BrokenThreadPool):
            future.result(10)
    assert concurrent.futures.wait(pending, 10).not_done == set()
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.failed, stats.pending) == (4, 1, 3, 0)
    del future, submitting, pending
    assert not [each for each in caplog.records if each.name.startswith("django_executors")]


def test_result_that_is_set_twice(caplog: pytest.LogCaptureFixture) -> None:
    """The standard error says so, and nothing else is said of a task that has succeeded."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(int)
        assert future.result(10) == 0
        with pytest.raises(concurrent.futures.InvalidStateError):
            future.set_exception(ValueError())
        del future
    assert caplog.records == []


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits hears it, the task is not run later, and its place is free when there are threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    pool = ThreadPoolExecutor(2, max_pending=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(done.append, "refused")
    pool.submit(done.append, "submitted").result(10)
    pool.shutdown()
    assert done == ["submitted"]
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.completed, stats.pending) == (4, 3, 1, 0)


class InterruptedOnce(threading.Condition):
    """A condition of which one waiter is interrupted as it wakes up."""

    interrupted = False

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return done


def test_interrupted_while_waiting(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """A submitter that is interrupted as it wakes up leaves the place to the next one."""
    pool = full(gate)
    bound = pool._work.bound
    assert bound is not None
    bound._changed = InterruptedOnce(bound._lock)
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(lambda: len(bound._changed._waiters) == 2)  # type: ignore[attr-defined]
    gate.open()
    errors = [future.exception(10) for future in submitting]
    assert sorted(type(error).__name__ for error in errors) == ["KeyboardInterrupt", "NoneType"]
    pool.shutdown()


def test_interrupted_shutdown(
    gate: Gate, submitter: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `shutdown` is interrupted before the pool refuses tasks, who waits for room waits on."""
    pool = full(gate)
    submitting = submitter.submit(pool.submit, int)
    assert wait_until(blocked)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "shutdown", interrupted)
        pool.shutdown()
    assert blocked() == 1
    assert pool._work.bound is not None
    assert not pool._work.bound._is_closed  # or it would try on and on
    gate.open()
    assert submitting.result(10).result(10) == 0
    pool.shutdown()


INTERRUPTED = """
import random, signal, sys
from django_executors import ThreadPoolExecutor

class Alarm(Exception):
    pass

def handle(*_):
    if armed:
        raise Alarm

armed = False
signal.signal(signal.SIGALRM, handle)
for seed in range(ROUNDS):
    random.seed(seed)
    with ThreadPoolExecutor(1, max_pending=1000) as pool:
        pool.submit(int).result(10)
        for _ in range(40):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 3e-4))
                try:
                    while True:
                        pool.submit(int)
                finally:
                    armed = False
            except Alarm:
                pass
    assert pool.stats().pending == 0, pool.stats()
    assert not pool._work.bound._places, pool._work.bound._places
    assert not pool._work.items
print("all ended")
"""


def test_signals_while_submitting() -> None:
    """A signal's handler that raises, anywhere in `submit`, leaves no lock taken and no place lost."""
    code = INTERRUPTED.replace("ROUNDS", "40")
    # Not measured: a tracer is Python's to interrupt, at every line, where no signal comes otherwise.
    done = run_python(code, settings=None, COVERAGE_PROCESS_CONFIG="", COVERAGE_PROCESS_START="")
    assert (done.stdout, done.stderr) == ("all ended\n", "")
