"""`shutdown(timeout=…)` by workers, by several threads, again, and interrupted."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor
from tests.support.draining import occupy, query
from tests.support.gates import Gate
from tests.support.shutting import beside, left
from tests.support.waiting import wait_until


def counted(kind: str, caplog: pytest.LogCaptureFixture) -> int:
    """Return how many tasks the records name that were running, or did not run."""
    return sum(int(number) for number in re.findall(rf"{kind}=(\d+)", "\n".join(left(caplog))))


def test_by_one_of_its_workers(gate: Gate) -> None:
    """A task, a callback, an initializer would wait for itself: it gets a RuntimeError."""

    def shut_down(*_: object) -> None:
        with pytest.raises(RuntimeError, match=r"^shutdown\(timeout=\.\.\.\) was called in a worker"):
            pool.shutdown(timeout=60)
        refused.release()

    refused = threading.Semaphore(0)
    with ThreadPoolExecutor(1, initializer=shut_down) as pool:
        pool.submit(shut_down).result(20)
        future = pool.submit(gate)
        future.add_done_callback(shut_down)
        gate.open()
        assert all(refused.acquire(timeout=20) for _ in range(3))
        assert pool.submit(int).result(20) == 0


def test_by_several_threads(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Each returns at its own deadline; what did not run is named once."""
    pool = ThreadPoolExecutor(1)
    pending = occupy(pool, gate, 50)
    together = threading.Barrier(4)

    def shut_down(_: int) -> None:
        together.wait(20)
        pool.shutdown(timeout=0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(shut_down, range(4)))
    assert all(future.cancelled() for future in pending)
    assert counted("not_run", caplog) == 50


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
    assert counted("not_run", caplog) == 3


@pytest.fixture
def interrupted() -> Iterator[list[int]]:
    """One SIGINT, and only one, raises KeyboardInterrupt, and is in this list then."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if not seen:
            seen.append(number)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    yield seen
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "cancels"),
    [({}, False), ({"timeout": 60}, False), ({"timeout": 60, "cancel_futures": True}, True)],
    ids=["standard", "timeout", "cancel_futures"],
)
def test_interrupted(
    arguments: dict[str, Any],
    cancels: bool,
    interrupted: list[int],
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ctrl-C ends the waiting: nothing more is cancelled, what was is named, and what runs runs on."""
    main, pending = threading.get_ident(), []

    def is_waiting() -> bool:
        try:
            pending.append(pool.submit(int))
        except RuntimeError:  # refused
            return pending[0].cancelled() is cancels
        return False

    def interrupt() -> None:
        begun.set()
        assert wait_until(is_waiting, within=20)
        # One that comes just before the main thread falls asleep does not wake it.
        wait_until(lambda: interrupted or signal.pthread_kill(main, signal.SIGINT), within=20)
        gate()

    begun, pool = threading.Event(), ThreadPoolExecutor(1)
    running = pool.submit(interrupt)
    assert begun.wait(20)
    pending += [pool.submit(int) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        pool.shutdown(**arguments)
    gate.wait_for()
    assert {future.cancelled() for future in pending} == {cancels}
    assert len(left(caplog)) == cancels
    pool.shutdown(timeout=0)
    assert all(future.cancelled() for future in pending)
    assert "running=1 (" in left(caplog)[-1]
    assert counted("not_run", caplog) == len(pending)
    gate.open()
    pool.shutdown(timeout=20)
    assert running.result(0) is None


@pytest.mark.usefixtures("many_switches")
def test_each_task_runs_or_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks come and go while the deadline passes: every future resolves, and the log is the truth."""
    for number in range(24):
        caplog.clear()
        pool = ThreadPoolExecutor(1 + number % 4)
        ran: list[int] = []
        futures: list[Future[None]] = []
        enough = threading.Event()

        def submit(
            pool: Any = pool, ran: Any = ran, futures: Any = futures, enough: Any = enough
        ) -> None:
            with contextlib.suppress(RuntimeError):  # until it is refused
                while True:
                    futures.append(pool.submit(ran.append, len(futures)))
                    if len(futures) == 50:
                        enough.set()

        with beside(submit):
            assert enough.wait(20)
            pool.shutdown(cancel_futures=number % 2 == 0, timeout=number % 3 * 0.001)
            running = counted("running", caplog)
        assert sum(not future.done() for future in futures) <= running <= 1 + number % 4
        assert wait(futures, 20).not_done == set()
        pool.shutdown(timeout=20)
        not_run = {number for number, future in enumerate(futures) if future.cancelled()}
        assert Counter([*ran, *not_run]) == Counter(range(len(futures)))
        assert counted("not_run", caplog) == len(not_run)
