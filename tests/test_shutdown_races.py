"""A deadline that comes while workers take tasks: each task runs or is named, none does both."""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, wait

import pytest

from django_executors import ThreadPoolExecutor

from .draining import is_idle
from .shutting import beside, left

ROUNDS = 150


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Round:
    """A pool, and what became of its tasks."""

    def __init__(self, number: int) -> None:
        self.pool = ThreadPoolExecutor(1 + number % 4)
        self.ran: list[int] = []
        self.futures: list[Future[None]] = []
        self.enough = threading.Event()

    def task(self, number: int) -> None:
        self.ran.append(number)

    def submit(self) -> None:
        """Submit until the pool refuses."""
        while True:
            try:
                self.futures.append(self.pool.submit(self.task, len(self.futures)))
            except RuntimeError:
                return
            if len(self.futures) == 50:
                self.enough.set()


def counted(kind: str, messages: list[str]) -> int:
    return sum(int(number) for number in re.findall(rf"{kind}=(\d+)", "\n".join(messages)))


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_each_task_runs_or_is_named(cancel_futures: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks come and go while the deadline passes: every future resolves, and the log is the truth."""
    lost = 0
    for number in range(ROUNDS):
        caplog.clear()
        this = Round(number)
        with beside(this.submit):
            assert this.enough.wait(10)
            this.pool.shutdown(cancel_futures=cancel_futures, timeout=number % 3 * 0.001)
            running = counted("running", left(caplog))
        assert sum(not future.done() for future in this.futures) <= running
        assert wait(this.futures, 20).not_done == set()
        this.pool.shutdown(timeout=20)
        not_run = {n for n, future in enumerate(this.futures) if future.cancelled()}
        assert Counter([*this.ran, *not_run]) == Counter(range(len(this.futures)))
        assert counted("not_run", left(caplog)) == len(not_run)
        assert running <= 1 + number % 4
        assert is_idle()
        lost += len(not_run)
    assert lost  # a deadline did come between


def test_two_deadlines_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two threads that empty the queue at the same time name each task once."""
    for number in range(ROUNDS):
        caplog.clear()
        this = Round(number)
        with beside(this.submit):
            assert this.enough.wait(10)
            with beside(lambda pool=this.pool: pool.shutdown(timeout=0)):  # type: ignore[misc]
                this.pool.shutdown(timeout=0)
        assert wait(this.futures, 20).not_done == set()
        this.pool.shutdown(timeout=20)
        not_run = sum(future.cancelled() for future in this.futures)
        assert counted("not_run", left(caplog)) == not_run
        assert len(this.ran) + not_run == len(this.futures)
