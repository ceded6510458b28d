"""`map(buffersize=…)`: the items are read only as far as the buffer goes."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
import dataclasses
import functools
import gc
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import connection, connections

from django_executors import (
    ExecutorStats,
    ImmediateExecutor,
    QueueFull,
    ThreadPoolExecutor,
    all_connections,
)
from django_executors.execution.stats import Tally
from django_executors.execution.work import Worker
from django_executors.lifecycle.holder import current_holder
from django_executors.testing import run_inline
from tests.executors.test_context_edge_cases import is_gone, submit_with_a_thing
from tests.projects.testapp.models import Entry
from tests.support.draining import IDLE, assert_holds_nothing, is_idle, occupy, query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.shutting import beside, index, left
from tests.support.waiting import wait_until


class Items:
    """Numbers, and how far they were read."""

    def __init__(self, count: int = 1000, fail_at: int = -1) -> None:
        self.read = 0
        self._count = count
        self._fail_at = fail_at

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            if number == self._fail_at:
                raise LookupError(number)
            self.read += 1
            yield number


def double(number: int) -> int:
    return 2 * number


@pytest.fixture(params=["threads", "immediate", "inline"])
def executor(request: pytest.FixtureRequest) -> Iterator[concurrent.futures.Executor]:
    if request.param == "immediate":
        yield ImmediateExecutor()
    elif request.param == "inline":
        with ThreadPoolExecutor(4) as pool, run_inline():
            yield pool
    else:
        with ThreadPoolExecutor(4) as pool:
            yield pool


def test_in_order_and_no_further(executor: Any) -> None:
    """Results come in order; as many items as the buffer holds are read at once, then one for each."""
    items = Items()
    results = executor.map(double, items, buffersize=10)
    assert items.read == 10
    for number in range(20):
        assert next(results) == 2 * number
        assert items.read == 11 + number
    assert list(results) == [2 * number for number in range(20, 1000)]
    assert items.read == 1000


def test_all_at_once(executor: Any) -> None:
    """Without a buffersize all items are submitted by the call, as in the standard class."""
    items = Items()
    results = executor.map(double, items)
    assert items.read == 1000
    assert list(results) == [2 * number for number in range(1000)]


def test_more_than_the_items(executor: Any) -> None:
    """A buffer larger than the items, several iterables, and none are as in the standard class."""
    assert list(executor.map(double, range(3), buffersize=10)) == [0, 2, 4]
    assert list(executor.map(pow, [2, 3, 4], [2, 2], buffersize=1)) == [4, 9]
    assert list(executor.map(double, [], buffersize=1)) == []
    assert list(executor.map(int, buffersize=3)) == []


@pytest.mark.parametrize(
    ("buffersize", "error", "said"),
    [
        (0, ValueError, "buffersize must be 1 or more, or None, not 0"),
        (-1, ValueError, "buffersize must be 1 or more, or None, not -1"),
        (1.0, TypeError, "buffersize must be an int or None, not 1.0"),
        (True, TypeError, "buffersize must be an int or None, not True"),
    ],
)
def test_wrong_values(executor: Any, buffersize: Any, error: type[Exception], said: str) -> None:
    """A wrong buffersize is refused by the call, and no item is read."""
    items = Items()
    with pytest.raises(error, match=f"^{said}$"):
        executor.map(double, items, buffersize=buffersize)
    assert items.read == 0


def stop_by_break(pool: ThreadPoolExecutor, gate: Gate) -> None:
    for _ in pool.map(lambda n: n and gate(), Items(), buffersize=10):
        break


def stop_by_an_error(pool: ThreadPoolExecutor, gate: Gate) -> None:
    def run(number: int) -> None:
        if number == 0:
            raise ValueError
        gate()

    with pytest.raises(ValueError):
        list(pool.map(run, Items(), buffersize=10))


def stop_by_an_item(pool: ThreadPoolExecutor, gate: Gate) -> None:
    with pytest.raises(LookupError):
        list(pool.map(lambda n: n and gate(), Items(fail_at=12), buffersize=11))


def stop_by_an_early_item(pool: ThreadPoolExecutor, gate: Gate) -> None:
    with pytest.raises(LookupError):
        pool.map(lambda n: n and gate(), Items(fail_at=8), buffersize=11)


def stop_by_a_timeout(pool: ThreadPoolExecutor, gate: Gate) -> None:
    for _ in range(2):
        pool.submit(gate)
    with pytest.raises(TimeoutError):
        list(pool.map(lambda _: gate(), Items(), buffersize=8, timeout=0))


STOPS = [stop_by_break, stop_by_an_error, stop_by_an_item, stop_by_an_early_item, stop_by_a_timeout]


@pytest.mark.parametrize("stop", STOPS)
def test_stops(stop: Any, gate: Gate) -> None:
    """A `break`, an error of a task or of the items, and a timeout cancel what has not begun."""
    with ThreadPoolExecutor(2) as pool:
        stop(pool, gate)
        stats = pool.stats()
        assert stats.pending == 0
        assert stats.submitted <= 12
        gate.open()
    stats = pool.stats()
    assert stats.cancelled >= 5
    assert stats.submitted == stats.cancelled + stats.completed + stats.failed


def test_a_full_queue(gate: Gate) -> None:
    """Where `submit` refuses in the middle, what was submitted is cancelled, and the error is heard."""
    with ThreadPoolExecutor(1, max_pending=5, when_full="raise") as pool:
        with pytest.raises(QueueFull):
            pool.map(lambda _: gate(), range(100))
        assert pool.stats().pending == 0
        gate.open()
        assert list(pool.map(double, range(5), buffersize=5)) == [0, 2, 4, 6, 8]


def test_a_full_queue_that_blocks() -> None:
    """With a blocking bound that is smaller than the buffer, all results come."""
    with ThreadPoolExecutor(2, max_pending=3) as pool:
        assert list(pool.map(double, range(500), buffersize=50)) == [2 * n for n in range(500)]


def test_after_shutdown() -> None:
    """When the pool is shut down meanwhile, the next item is refused with the standard error."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(double, range(10), buffersize=2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


@pytest.mark.parametrize("buffersize", [None, 3, 100])
def test_an_executor_that_only_the_results_hold(buffersize: int | None) -> None:
    """All results come, also of what is submitted later; then nothing refers to the executor."""
    pool = ThreadPoolExecutor(2)
    results = pool.map(double, range(10), buffersize=buffersize)
    assert next(results) == 0
    reference = weakref.ref(pool)
    del pool
    assert (reference() is None) == (buffersize != 3)
    assert list(results) == [2 * number for number in range(1, 10)]
    assert reference() is None


def test_the_shortest_iterable_ends_it(executor: Any) -> None:
    """Of the other iterables one more item is read than there are results, as by `zip`, and no more."""
    items = Items()
    assert list(executor.map(pow, items, [1, 1, 1], buffersize=2)) == [0, 1, 2]
    assert items.read == 4


def test_no_cycle() -> None:
    """An error in the middle leaves nothing for the garbage collector."""

    class Thing:
        pass

    def run(thing: Thing) -> None:
        raise ValueError

    things: list[weakref.ref[Thing]] = []

    def make() -> Iterator[Thing]:
        for _ in range(10):
            thing = Thing()
            things.append(weakref.ref(thing))
            yield thing

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError):
            list(pool.map(run, make(), buffersize=3))
        pool.submit(int).result(10)
    assert not gc.isenabled()
    assert [thing() for thing in things] == [None] * len(things)


def test_a_queryset(postgres: PostgresObserver) -> None:
    """A queryset's iterator is read as far as the buffer, in the caller's thread, on its connection."""
    Entry.objects.bulk_create(Entry(name=str(number)) for number in range(500))
    try:
        here = threading.get_ident()
        threads = set()

        def entries() -> Iterator[Entry]:
            for entry in Entry.objects.order_by("pk").iterator(chunk_size=100):
                threads.add(threading.get_ident())
                yield entry

        with ThreadPoolExecutor(4) as pool:
            names = pool.map(lambda entry: Entry.objects.get(pk=entry.pk).name, entries(), buffersize=20)
            assert list(names) == [str(number) for number in range(500)]
            assert threads == {here}
            assert wait_until(lambda: len(postgres.backends("app")), lambda n: n == 1) == 1
    finally:
        Entry.objects.all().delete()


@pytest.mark.parametrize("stop", STOPS)
def test_holds_nothing(stop: Any, gate: Gate, postgres: PostgresObserver) -> None:
    """However it stops, no connection is left."""

    class Queries(Gate):
        def __call__(self, *_: object) -> None:
            query()
            gate()

    with ThreadPoolExecutor(2) as pool:
        stop(pool, Queries())
        gate.open()
    assert not postgres.left()


# `stats()`: numbers of one moment, that add up.


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


def test_no_cycle_stats() -> None:
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


# `shutdown(timeout=…)`: it returns at the deadline, and what it names did not run.


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
            "running=1 (tests.executors.test_base.test_deadline.<locals>.<lambda> x1) "
            "not_run=3 (tests.support.draining.query x2, tests.support.shutting.index x1)"
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
        (
            "executor=of the test timeout=60.0 shutdown left running=0 "
            "not_run=3 (tests.support.draining.query x3)"
        )
    ]


def test_cancelled_by_its_submitter(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """What its submitter has cancelled is not named."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate)
    gate.wait_for()
    assert pool.submit(query).cancel()
    pool.shutdown(timeout=0)
    assert left(caplog)[0].endswith("running=1 (tests.support.gates.Gate x1) not_run=0")


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
    assert left(caplog)[0].endswith("running=0 not_run=2 (tests.support.draining.query x2)")
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


# What a shutdown with a deadline calls the tasks that it leaves.


Standard = concurrent.futures.ThreadPoolExecutor


def names(caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Return what the only record says of what ran and of what did not."""
    (message,) = left(caplog)
    running, not_run = re.findall(r"running=(.*) not_run=(.*)", message)[0]
    return running, not_run


def test_most_frequent_first(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Ten names are listed, the most frequent ones, and the rest is a number."""

    def named(name: str) -> Callable[[], None]:
        def task() -> None: ...

        task.__module__, task.__qualname__ = "shop", name
        return task

    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 0)
    for number in range(13):
        for _ in range(number + 1):
            pool.submit(named(f"task_{number}"))
    pool.shutdown(timeout=0)
    listed = ", ".join(f"shop.task_{number} x{number + 1}" for number in range(12, 2, -1))
    assert names(caplog) == ("1 (tests.support.gates.Gate x1)", f"91 ({listed}, and 3 more)")


def test_odd_functions(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Partials, methods, builtins and arguments that look like ours have the names of their tasks."""
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 0)
    pool.submit(functools.partial(index, 1))
    pool.submit(index, pool, None, query)
    pool.submit(threading.Event().wait, 0)
    pool.submit(int, "5", base=8)
    pool.shutdown(timeout=0)
    assert (
        names(caplog)[1]
        == "4 (tests.support.shutting.index x2, threading.Event.wait x1, builtins.int x1)"
    )


@pytest.mark.parametrize("keeps_arguments", [True, False])
def test_wrapped_by_a_patched_submit(
    keeps_arguments: bool,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What tracing wraps each task in is not named, whatever it does with the task's arguments."""
    original = Standard.submit

    def submit(self: Any, fn: Any, /, *args: Any) -> Any:
        if keeps_arguments:
            return original(self, lambda *args: fn(*args), *args)
        return original(self, lambda: fn(*args))

    monkeypatch.setattr(Standard, "submit", submit)
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 2)
    pool.shutdown(timeout=0)
    assert "query x2" in names(caplog)[1]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it is so in every test")
def test_work_items_as_python_3_14_has_them(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a work item keeps its parts in one attribute, the names are the same."""

    class WorkItem:
        def __init__(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            self.future, self.task = future, (fn, args, kwargs)

        def run(self) -> None:
            if self.future.set_running_or_notify_cancel():
                fn, args, kwargs = self.task
                self.future.set_result(fn(*args, **kwargs))

    monkeypatch.setattr(concurrent.futures.thread, "_WorkItem", WorkItem)
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 2)
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (tests.support.gates.Gate x1)", "2 (tests.support.draining.query x2)")


def test_callback_and_initializer(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that runs is named as its task's; an initializer is called that."""
    pool = ThreadPoolExecutor(1)
    proceed = Gate()
    future = pool.submit(proceed)
    proceed.wait_for()
    future.add_done_callback(gate)
    proceed.open()
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (a callback of tests.support.gates.Gate x1)", "0")

    caplog.clear()
    pool = ThreadPoolExecutor(1, initializer=gate)
    pool.submit(query)
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (an initializer x1)", "1 (tests.support.draining.query x1)")


def test_a_task_that_has_cancelled_the_others(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A task that shuts down its own pool, as with the standard class, is still the one that runs."""
    pool = ThreadPoolExecutor(1)
    others = Gate()

    def shuts_down() -> None:
        others()
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    futures = [pool.submit(task) for task in (shuts_down, query, query)]
    others.wait_for()
    others.open()
    gate.wait_for()
    assert [future.cancelled() for future in futures] == [False, True, True]
    pool.shutdown(timeout=0)
    assert names(caplog)[0].endswith("<locals>.shuts_down x1)")
    gate.open()
    pool.shutdown(timeout=20)


def test_taken_and_not_begun(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that a worker has just taken at the deadline is named as running, and runs."""
    take = Worker.take

    def stop_here(self: Worker, item: Any) -> None:
        if current_holder().executor == "stops" and item is not None:
            gate()
        take(self, item)

    monkeypatch.setattr(Worker, "take", stop_here)
    pool = ThreadPoolExecutor(1, "stops")
    future = pool.submit(query)
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (tests.support.draining.query x1)", "0")
    gate.open()
    assert future.result(10) == "stops_0"
    pool.shutdown(timeout=20)
