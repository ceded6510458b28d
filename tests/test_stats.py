"""`stats()`: numbers of one moment, that add up."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, connections

from django_executors import ExecutorStats, ImmediateExecutor, ThreadPoolExecutor, all_connections
from django_executors.execution.stats import Tally
from django_executors.execution.work import Worker
from django_executors.testing import run_inline

from .draining import query
from .gates import Gate
from .waiting import wait_until


def adds_up(stats: ExecutorStats) -> bool:
    ended = stats.completed + stats.failed + stats.cancelled
    return (
        stats.submitted == stats.pending + stats.busy + ended
        and stats.workers == stats.busy + stats.idle
        and min(dataclasses.astuple(stats)) >= 0
    )


def fail() -> None:
    raise ValueError


def test_a_new_one() -> None:
    """An executor that has done nothing has only zeros."""
    for executor in (ThreadPoolExecutor(4), ImmediateExecutor()):
        assert set(dataclasses.astuple(executor.stats())) == {0}


def test_every_number(gate: Gate) -> None:
    """Tasks are counted by their ends, before their futures resolve, and workers by what they do."""
    pool = ThreadPoolExecutor(3)
    assert [pool.submit(fn).exception(10) is None for fn in (int, fail, int)] == [True, False, True]
    stats = pool.stats()
    assert (stats.submitted, stats.completed, stats.failed, stats.busy) == (3, 2, 1, 0)
    running = [pool.submit(gate) for _ in range(3)]
    gate.wait_for(3)
    pending = [pool.submit(int) for _ in range(4)]
    assert pending[1].cancel()
    assert not running[0].cancel()
    stats = pool.stats()
    assert (stats.workers, stats.busy, stats.idle, stats.pending, stats.cancelled) == (3, 3, 0, 3, 1)
    assert adds_up(stats)
    gate.open()
    pool.shutdown()
    stats = pool.stats()
    assert (stats.workers, stats.busy, stats.idle, stats.pending) == (0, 0, 0, 0)
    assert (stats.submitted, stats.completed, stats.failed, stats.cancelled) == (10, 8, 1, 1)
    assert adds_up(stats)


def test_immutable() -> None:
    """What it returns stays as it is."""
    with ThreadPoolExecutor(1) as pool:
        before = pool.stats()
        pool.submit(int).result(10)
        assert before.submitted == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.submitted = 1  # type: ignore[misc]


def test_connections() -> None:
    """Connections are counted as they open and close; those that are open are the difference."""

    def look() -> None:
        query()
        stats = pool.stats()
        assert stats.connections_opened - stats.connections_closed == len(all_connections()) == 1

    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            pool.submit(look).result(10)
        stats = pool.stats()
        assert (stats.connections_opened, stats.connections_closed) == (2, 2)
        assert (stats.connections_reset, stats.connections_reused, stats.close_failures) == (0, 0, 0)


@pytest.mark.parametrize(("max_age", "kept"), [(0, "connections_reset"), (60, "connections_reused")])
def test_kept(max_age: int, kept: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that goes on is counted as reset or as reused, by its CONN_MAX_AGE."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", max_age)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        futures = [pool.submit(query) for _ in range(5)]
        gate.open()
        assert all(future.result(10) for future in futures)
        stats = dataclasses.asdict(pool.stats())
        assert (stats["connections_opened"], stats["connections_closed"], stats[kept]) == (1, 1, 4)
        assert stats["connections_reset"] + stats["connections_reused"] == 4


def test_close_failures(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that fails to close is counted, and counted as closed."""

    def break_it() -> None:
        query()
        driver: Any = connection.connection
        connection.connection = Unwilling(driver)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(break_it).result(10)
        stats = pool.stats()
        assert (stats.close_failures, stats.connections_opened, stats.connections_closed) == (1, 1, 1)


class Unwilling:
    """A driver's connection that raises on closing, once."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._refuses = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def close(self) -> None:
        if self._refuses:
            self._refuses = False
            raise OSError
        self._driver.close()


def test_seconds(gate: Gate) -> None:
    """Waiting in the queue and running are measured, in seconds, once the task has begun, or ended."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        gate.wait_for()
        second = pool.submit(int)
        before = pool.stats()
        gate.open()
        second.result(10)
        after = pool.stats()
    assert before.run_seconds == 0 < after.run_seconds
    assert before.queue_seconds < after.queue_seconds


def test_in_callers_threads() -> None:
    """ImmediateExecutor, and a pool within `run_inline`, count what ran in the callers' threads."""
    pool = ThreadPoolExecutor(1)
    with ImmediateExecutor() as immediate, run_inline():
        for executor in (immediate, pool):

            def look(executor: Any = executor) -> ExecutorStats:
                stats: ExecutorStats = executor.stats()
                return stats

            during = executor.submit(look).result()
            assert (during.workers, during.busy, during.idle, during.submitted) == (1, 1, 0, 1)
            assert isinstance(executor.submit(fail).exception(), ValueError)
            stats = executor.stats()
            assert (stats.submitted, stats.completed, stats.failed, stats.workers) == (2, 1, 1, 0)
            assert adds_up(stats)
    pool.shutdown()


def test_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens while it reads is in all of the numbers, or in none."""
    read = Tally.read
    tasks = [int, fail]

    def slow_read(self: Tally) -> Any:
        if tasks:
            pool.submit(tasks.pop()).exception(10)
        return read(self)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result(10)
        monkeypatch.setattr(Tally, "read", slow_read)
        stats = pool.stats()
        assert adds_up(stats)
        assert (stats.submitted, stats.completed, stats.failed) == (3, 2, 1)


def test_a_worker_that_ends_meanwhile(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ends while it reads is still counted for the task that it ran at that moment."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        gate.wait_for()
        monkeypatch.setattr(Worker, "has_ended", lambda _: True)
        stats = pool.stats()
        gate.open()
    assert (stats.workers, stats.busy, stats.idle) == (1, 1, 0)


@pytest.mark.usefixtures("collector_off")
def test_no_cycle() -> None:
    """What an executor kept of its work goes with it, without a collection."""
    pool = ThreadPoolExecutor(2)
    assert pool.submit(int).result(10) == 0
    assert pool.submit(fail).exception(10)
    pool.shutdown()
    executor, work = weakref.ref(pool), weakref.ref(pool._work)
    del pool
    assert executor() is work() is None


@pytest.fixture
def often_switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("often_switching")
def test_consistent_under_load() -> None:
    """Whenever it is read, from however many threads, the numbers add up and none goes back."""
    stop = threading.Event()
    growing = ("submitted", "completed", "failed", "cancelled", "queue_seconds", "run_seconds")

    def look() -> list[ExecutorStats]:
        wrong = []
        before = pool.stats()
        while not stop.is_set():
            after = pool.stats()
            if not adds_up(after) or any(getattr(after, n) < getattr(before, n) for n in growing):
                wrong.append(after)
            before = after
        return wrong

    with ThreadPoolExecutor(4) as pool, concurrent.futures.ThreadPoolExecutor(2) as lookers:
        looking = [lookers.submit(look) for _ in range(2)]
        try:
            for number in range(10_000):
                future = pool.submit(fail if number % 3 == 0 else int)
                if number % 5 == 0:
                    future.cancel()
                if number % 3 == 0:
                    future.add_done_callback(lambda _: None)
            wait_until(pool.stats, lambda stats: stats.pending + stats.busy == 0, within=60)
        finally:
            stop.set()
        assert [each.result(20) for each in looking] == [[], []]
        assert pool.stats().submitted == 10_000
