"""`shutdown(timeout=…)` by workers, by several threads, again, and interrupted."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

import pytest

from django_executors import ThreadPoolExecutor
from django_executors.execution import ending
from tests.support.draining import check_accounting, is_idle, occupy, query
from tests.support.gates import Gate
from tests.support.shutting import beside, left
from tests.support.waiting import wait_until


def from_a_task(pool: ThreadPoolExecutor, call: Callable[[], object]) -> None:
    pool.submit(call).result(10)


def from_a_callback(pool: ThreadPoolExecutor, call: Callable[[], object]) -> None:
    called, gate = threading.Event(), Gate()
    future = pool.submit(gate)
    future.add_done_callback(lambda _: (call(), called.set()))
    gate.open()
    assert called.wait(10)


@pytest.mark.parametrize("called", [from_a_task, from_a_callback])
@pytest.mark.usefixtures("idle_before_and_after")
def test_by_one_of_its_workers(called: Callable[..., None]) -> None:
    """A worker that would wait for itself gets a RuntimeError, and the pool works on."""

    def call() -> None:
        try:
            pool.shutdown(timeout=60)
        except RuntimeError as error:
            errors.append(str(error))

    errors: list[str] = []
    pool = ThreadPoolExecutor(1)
    called(pool, call)
    assert errors == ["shutdown(timeout=...) was called in a worker, and would wait for itself"]
    check_accounting(pool)


@pytest.mark.usefixtures("idle_before_and_after")
def test_by_an_initializer() -> None:
    """So does an initializer."""
    errors: list[str] = []

    def initialize() -> None:
        with pytest.raises(RuntimeError, match="in a worker") as caught:
            pool.shutdown(timeout=60)
        errors.append(str(caught.value))

    pool = ThreadPoolExecutor(1, initializer=initialize)
    assert pool.submit(query).result(10)
    assert len(errors) == 1


@pytest.mark.usefixtures("idle_before_and_after")
def test_by_two_pools_workers_of_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """Two tasks that shut down each other's pool wait no longer than their deadlines."""
    first, second = ThreadPoolExecutor(1, "first"), ThreadPoolExecutor(1, "second")
    both = threading.Barrier(2)

    def shut_down(other: ThreadPoolExecutor) -> None:
        both.wait(10)
        other.shutdown(timeout=0.2)
        both.wait(10)

    futures = [first.submit(shut_down, second), second.submit(shut_down, first)]
    for future in futures:
        future.result(20)
    assert sorted(re.findall("^executor=(\\w+)", "\n".join(left(caplog)), re.MULTILINE)) == [
        "first",
        "second",
    ]


@pytest.mark.usefixtures("idle_before_and_after")
def test_by_several_threads(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Each returns at its own deadline; what did not run is named once."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 50)
    together = threading.Barrier(4)

    def shut_down(_: int) -> None:
        together.wait(10)
        pool.shutdown(timeout=0.1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(shut_down, range(4)))
    assert all(future.cancelled() for future in pending)
    assert sum(int(n) for n in re.findall(r"not_run=(\d+)", "\n".join(left(caplog)))) == 50


@pytest.mark.usefixtures("idle_before_and_after")
def test_again(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """After one that has lost something, another one waits for what runs, and has nothing to say."""
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 2)
    pool.shutdown(timeout=0)
    with beside(lambda: pool.shutdown(timeout=60)) as ended:
        assert not ended.done()
        gate.open()
        ended.result(20)
    pool.shutdown(timeout=0)
    pool.shutdown()
    assert len(left(caplog)) == 1


@pytest.mark.usefixtures("idle_before_and_after")
def test_standard_shutdown_while_another_waits(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """`shutdown()` and the end of a `with` block return when the workers have ended, as ever."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 2)
    with beside(pool.shutdown) as ended:
        pool.shutdown(timeout=0)
        assert all(future.cancelled() for future in pending)
        assert not ended.done()
        gate.open()
        ended.result(20)
    assert len(left(caplog)) == 1


@pytest.mark.usefixtures("idle_before_and_after")
def test_by_a_callback_of_what_it_cancels(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A callback of a cancelled task may shut the pool down itself, and submits in vain."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 3)
    refused = []

    def call(_: object) -> None:
        pool.shutdown(timeout=0)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(query)
        refused.append(threading.get_ident())

    pending[0].add_done_callback(call)
    pool.shutdown(timeout=0)
    assert refused == [threading.get_ident()]
    assert all(future.cancelled() for future in pending)
    assert sum(int(n) for n in re.findall(r"not_run=(\d+)", "\n".join(left(caplog)))) == 3


@pytest.mark.parametrize("cancel_futures", [False, True])
@pytest.mark.usefixtures("idle_before_and_after")
def test_interrupted(
    cancel_futures: bool,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C ends the waiting: nothing more is cancelled, and what was is named."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ending, "is_alive", lambda _: signal.raise_signal(signal.SIGINT))
        pool.shutdown(cancel_futures=cancel_futures, timeout=60)
    assert [future.cancelled() for future in pending] == [cancel_futures] * 2
    assert len(left(caplog)) == int(cancel_futures)
    gate.open()
    pool.shutdown(timeout=20)
    assert all(future.cancelled() or future.result(0) for future in pending)
    assert is_idle()


@pytest.mark.usefixtures("idle_before_and_after")
def test_after_an_interrupted_join(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """After a Ctrl-C in `shutdown()` it still waits for what runs, which Python may take for ended."""
    main = threading.get_ident()

    def interrupt() -> None:
        inside = {"join", "_wait_for_tstate_lock"}
        wait_until(lambda: sys._current_frames()[main].f_code.co_name in inside, within=10)
        signal.pthread_kill(main, signal.SIGINT)
        gate()

    pool = ThreadPoolExecutor(1)
    running, *pending = [pool.submit(task) for task in (interrupt, query, query)]
    with pytest.raises(KeyboardInterrupt):
        pool.shutdown()
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert all(future.cancelled() for future in pending)
    assert "running=1 (" in left(caplog)[0]
    assert not is_idle()
    gate.open()
    pool.shutdown(timeout=20)
    assert running.result(0) is None
    assert len(left(caplog)) == 1


# A deadline that comes while workers take tasks: each task runs or is named, none does both.


ROUNDS = 150


@pytest.fixture
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
@pytest.mark.usefixtures("many_switches")
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


@pytest.mark.usefixtures("many_switches")
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
