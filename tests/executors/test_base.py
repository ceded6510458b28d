"""What every executor has: `map`, `stats` and `shutdown(timeout=…)`."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import logging
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_executors import (
    ExecutorStats,
    ImmediateExecutor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    all_connections,
    all_executors,
    executors,
)
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.draining import IDLE, assert_holds_nothing, is_idle, occupy, query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.shutting import beside, index, left

EXECUTORS = pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), ImmediateExecutor])


class Items:
    """Numbers, and how many of them were read."""

    def __init__(self, fail_at: int = -1) -> None:
        self.read = 0
        self._fail_at = fail_at

    def __iter__(self) -> Iterator[int]:
        for number in range(100):
            if number == self._fail_at:
                raise LookupError(number)
            self.read += 1
            yield number


def double(number: int) -> int:
    return 2 * number


@EXECUTORS
def test_in_order_and_no_further(make: Callable[[], Any]) -> None:
    """Results come in order; as many items as the buffer holds are read at once, then one for each."""
    items = Items()
    with make() as executor:
        results = executor.map(double, items, buffersize=10)
        assert items.read == 10
        for number in range(20):
            assert next(results) == 2 * number
            assert items.read == 11 + number
        assert list(results) == [2 * number for number in range(20, 100)]


@EXECUTORS
def test_map_is_the_standard_one(make: Callable[[], Any]) -> None:
    """Without a buffersize all items are submitted by the call; the shortest iterable ends it."""
    with make() as executor:
        items = Items()
        results = executor.map(double, items)
        assert items.read == 100
        assert list(results) == [2 * number for number in range(100)]
        items = Items()
        assert list(executor.map(pow, items, [1, 1, 1], buffersize=2)) == [0, 1, 2]
        assert items.read == 4  # one more than there are results, as by `zip`
        assert list(executor.map(double, range(3), buffersize=10)) == [0, 2, 4]
        assert list(executor.map(int, buffersize=3)) == []


@pytest.mark.parametrize(
    ("buffersize", "error", "said"),
    [
        (0, ValueError, "buffersize must be 1 or more, or None, not 0"),
        (True, TypeError, "buffersize must be an int or None, not True"),
    ],
)
def test_wrong_buffersize(buffersize: Any, error: type[Exception], said: str) -> None:
    """A wrong buffersize is refused by the call, and no item is read."""
    items = Items()
    with pytest.raises(error, match=f"^{said}$"):
        ImmediateExecutor().map(double, items, buffersize=buffersize)
    assert items.read == 0


def stop_by_break(pool: ThreadPoolExecutor, gate: Gate) -> None:
    for _ in pool.map(lambda number: number and gate(), Items(), buffersize=10):
        break


def stop_by_an_item(pool: ThreadPoolExecutor, gate: Gate) -> None:
    with pytest.raises(LookupError):
        pool.map(lambda number: number and gate(), Items(fail_at=8), buffersize=11)


def stop_by_a_timeout(pool: ThreadPoolExecutor, gate: Gate) -> None:
    for _ in range(2):
        pool.submit(gate)
    gate.wait_for(2)
    with pytest.raises(TimeoutError):
        list(pool.map(lambda _: gate(), Items(), buffersize=8, timeout=0))


@pytest.mark.parametrize("stop", [stop_by_break, stop_by_an_item, stop_by_a_timeout])
def test_stops(stop: Any, holding: Gate, postgres: PostgresObserver) -> None:
    """A `break`, an error of the items, and a timeout cancel what has not begun."""
    with ThreadPoolExecutor(2) as pool:
        stop(pool, holding)
        stats = pool.stats()
        assert stats.pending == 0
        assert stats.submitted <= 12
        holding.open()
    stats = pool.stats()
    assert stats.cancelled >= 5
    assert stats.submitted == stats.cancelled + stats.completed + stats.failed
    assert not postgres.left()


def test_map_after_shutdown() -> None:
    """When the pool is shut down meanwhile, the next item is refused with the standard error."""
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(double, range(10), buffersize=2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        next(results)


@pytest.mark.parametrize("buffersize", [None, 3])
def test_an_executor_that_only_the_results_hold(buffersize: int | None) -> None:
    """All results come, also of what is submitted later; then nothing refers to the executor."""
    pool = ThreadPoolExecutor(2)
    results = pool.map(double, range(10), buffersize=buffersize)
    assert next(results) == 0
    reference = weakref.ref(pool)
    del pool
    assert (reference() is None) == (buffersize is None)
    assert list(results) == [2 * number for number in range(1, 10)]
    assert reference() is None


def test_map_makes_no_cycle(caplog: pytest.LogCaptureFixture) -> None:
    """An error in the middle leaves nothing for the garbage collector."""
    caplog.set_level(logging.CRITICAL, "django_executors")  # a record of another error keeps it

    class Thing:
        """An item."""

    def run(thing: Thing) -> None:
        raise ValueError

    def make() -> Iterator[Thing]:
        for _ in range(10):
            thing = Thing()
            things.append(weakref.ref(thing))
            yield thing

    things: list[weakref.ref[Thing]] = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError):
        list(pool.map(run, make(), buffersize=3))
    assert [thing() for thing in things] == [None] * len(things)


@pytest.mark.parametrize("failing", [2, 6])  # submitted by the call, and by the iteration
@EXECUTORS
def test_map_keeps_no_transaction(make: Callable[[], Any], failing: int) -> None:
    """When a task's error is handled, the generator of the items has ended, and so has its `atomic`."""

    def rows() -> Iterator[int]:
        with transaction.atomic():
            yield from range(100)

    def make_rows() -> Iterator[int]:
        found = rows()
        made.append(weakref.ref(found))
        return found

    def fail_at_one(number: int) -> None:
        if number == failing:
            raise LookupError(number)

    made: list[weakref.ref[Any]] = []
    with make() as executor:
        try:
            for _ in executor.map(fail_at_one, make_rows(), buffersize=4):
                pass
        except LookupError:
            left = made[0]()
            Entry.objects.create(name="of the handler")
            if left is not None:  # or the tests after this one fail too
                left.close()
    connection.close()
    assert left is None
    assert Entry.objects.count() == 1


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


def test_every_number(gate: Gate) -> None:
    """Tasks are counted by their ends, before their futures resolve, and workers by what they do."""
    pool = ThreadPoolExecutor(3)
    at_first = pool.stats()
    assert [pool.submit(fn).exception(20) is None for fn in (int, fail, int)] == [True, False, True]
    assert set(dataclasses.astuple(at_first)) == {0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        at_first.submitted = 1  # type: ignore[misc]
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


def test_connections() -> None:
    """Connections are counted as they open and close; those that are open are the difference."""

    def look() -> None:
        query()
        stats = pool.stats()
        assert stats.connections_opened - stats.connections_closed == len(all_connections()) == 1

    with ThreadPoolExecutor(1) as pool:
        pool.submit(look).result(20)
        pool.submit(look).result(20)
        assert (pool.stats().connections_opened, pool.stats().connections_closed) == (2, 2)


@pytest.mark.parametrize(("max_age", "kept"), [(0, "connections_reset"), (60, "connections_reused")])
def test_kept(max_age: int, kept: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that goes on is counted as reset or as reused, by its CONN_MAX_AGE."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", max_age)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        futures = [pool.submit(query) for _ in range(5)]
        gate.open()
        assert all(future.result(20) for future in futures)
        stats = dataclasses.asdict(pool.stats())
        assert (stats["connections_opened"], stats["connections_closed"], stats[kept]) == (1, 1, 4)
        assert stats["connections_reset"] + stats["connections_reused"] == 4


@pytest.mark.usefixtures("caplog")
def test_close_failures() -> None:
    """A connection that fails to close is counted, and counted as closed."""

    def break_it() -> None:
        query()
        vars(connections["default"])["_close"] = fail

    with ThreadPoolExecutor(1) as pool:
        pool.submit(break_it).result(20)
        stats = pool.stats()
        assert (stats.close_failures, stats.connections_opened, stats.connections_closed) == (1, 1, 1)


def test_seconds(gate: Gate) -> None:
    """Waiting in the queue and running are measured, in seconds, once the task has begun, or ended."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        gate.wait_for()
        second = pool.submit(int)
        before = pool.stats()
        gate.open()
        second.result(20)
        after = pool.stats()
    assert before.run_seconds == 0 < after.run_seconds
    assert before.queue_seconds < after.queue_seconds


def test_in_callers_threads() -> None:
    """ImmediateExecutor, and a pool within `run_inline`, count what ran in the callers' threads."""
    pool = ThreadPoolExecutor(1)
    with ImmediateExecutor() as immediate, run_inline():
        for executor in (immediate, pool):
            during = executor.submit(executor.stats).result()
            assert (during.workers, during.busy, during.idle, during.submitted) == (1, 1, 0, 1)
            assert isinstance(executor.submit(fail).exception(), ValueError)
            stats = executor.stats()
            assert (stats.submitted, stats.completed, stats.failed, stats.workers) == (2, 1, 1, 0)
            assert adds_up(stats)
    pool.shutdown()


@pytest.mark.usefixtures("many_switches")
def test_counted_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 threads submit at once, half of them inline: each task is counted, and once."""
    tasks, submitters = 102, 16
    inline: set[int] = set()
    together = threading.Barrier(submitters)
    monkeypatch.setattr("django_executors.thread.is_inline", lambda: threading.get_ident() in inline)

    def submit(number: int) -> None:
        if number % 2:
            inline.add(threading.get_ident())
        together.wait(20)
        for future in [pool.submit(task) for task in [fail, int, int] * (tasks // 3)]:
            future.exception(20)

    with ThreadPoolExecutor(4) as pool, concurrent.futures.ThreadPoolExecutor(submitters) as threads:
        list(threads.map(submit, range(submitters), timeout=60))
    stats = pool.stats()
    assert stats.submitted == tasks * submitters
    assert (stats.failed, stats.completed) == (tasks // 3 * submitters, tasks * 2 // 3 * submitters)
    assert adds_up(stats)


@pytest.mark.usefixtures("many_switches")
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

    def submit_all() -> None:
        for number in range(1000):
            future = pool.submit(fail if number % 3 == 0 else int)
            if number % 5 == 0:
                future.cancel()
            future.add_done_callback(lambda _: None)

    with ThreadPoolExecutor(4) as pool, concurrent.futures.ThreadPoolExecutor(2) as lookers:
        looking = [lookers.submit(look) for _ in range(2)]
        try:
            submit_all()
            pool.shutdown()
        finally:
            stop.set()
        assert [each.result(20) for each in looking] == [[], []]
        assert pool.stats().submitted == 1000


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


@pytest.mark.usefixtures("idle_before_and_after")
def test_deadline(gate: Gate, caplog: pytest.LogCaptureFixture, postgres: PostgresObserver) -> None:
    """What has not begun is cancelled, what runs goes on, and one error says how many of each."""
    pool = ThreadPoolExecutor(1, "of the test")
    running = pool.submit(lambda: (query(), gate()))
    gate.wait_for()
    pending = [pool.submit(task) for task in (query, index, query)]
    assert pool.submit(query).cancel()  # by its submitter: not named
    with beside(lambda: concurrent.futures.wait(pending, 20)) as waited:
        pool.shutdown(timeout=0.05)
        assert waited.result(20).not_done == set()
    assert all(future.cancelled() for future in pending)
    assert left(caplog) == [
        (
            "executor=of the test timeout=0.05 shutdown left "
            "running=1 (tests.executors.test_base.test_deadline.<locals>.<lambda> x1) "
            "not_run=3 (tests.support.draining.query x2, tests.support.shutting.index x1)"
        )
    ]
    assert caplog.records[-1].levelname == "ERROR"
    assert not is_idle()
    gate.open()
    running.result(20)
    pool.shutdown(timeout=20)
    assert_holds_nothing(postgres)
    assert is_idle()
    assert len(left(caplog)) == 1


def test_cancel_futures(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """With `cancel_futures` the queued are cancelled at once and named, the running waited for."""
    pool = ThreadPoolExecutor(1, "of the test")
    pending = occupy(pool, gate, 3)
    with beside(lambda: pool.shutdown(cancel_futures=True, timeout=60)) as ended:
        assert concurrent.futures.wait(pending, 20).not_done == set()
        assert not ended.done()
        gate.open()
        ended.result(20)
    assert all(future.cancelled() for future in pending)
    assert gate.ended
    assert names(caplog) == ("0", "3 (tests.support.draining.query x3)")


def test_waiting_workers_end(gate: Gate) -> None:
    """Workers that wait for work at the deadline end, though another one is busy."""
    pool = ThreadPoolExecutor(3, "of the test")
    occupy(pool, gate, 0)
    barrier = threading.Barrier(2)
    concurrent.futures.wait([pool.submit(barrier.wait, 20) for _ in range(2)], 20)
    busy, *others = sorted(
        (t for t in threading.enumerate() if t.name.startswith("of the test")), key=lambda t: t.name
    )
    pool.shutdown(timeout=0)
    for thread in others:
        thread.join(20)
        assert not thread.is_alive()
    assert busy.is_alive()
    assert len(others) == 2


def test_a_callback_that_would_end_its_thread(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """The worker is everybody's: it logs what the callback raised, and does the rest."""

    def end_thread(_: object) -> None:
        raise SystemExit

    pool = ThreadPoolExecutor(1)
    ends = pool.submit(gate)
    ends.add_done_callback(end_thread)
    gate.wait_for()
    pending = [pool.submit(int) for _ in range(2)]
    gate.open()
    assert [future.result(20) for future in pending] == [0, 0]
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("concurrent.futures", "Exception in worker")
    pool.shutdown(timeout=20)


def test_where_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Tasks in their callers' threads are over: it returns at once, and refuses what comes."""
    with run_inline():
        for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
            assert executor.submit(int).result(0) == 0
            executor.shutdown(cancel_futures=True, timeout=60)
            with pytest.raises(RuntimeError, match="after shutdown"):
                executor.submit(int)
    assert left(caplog) == []


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timeout": "5"}, TypeError, "^timeout must be a number of seconds, not '5'$"),
    ({"timeout": -1}, ValueError, "^timeout must be 0 or more seconds, not -1$"),
    ({"timeout": float("nan")}, ValueError, "^timeout must be 0 or more seconds, not nan$"),
    ({"timeout": 5, "wait": False}, ValueError, "^timeout says how long to wait: .*wait=False"),
]


@EXECUTORS
def test_bad_timeout(make: Callable[[], Any]) -> None:
    """A timeout that is none is refused by name, and the executor works on."""
    with make() as executor:
        for arguments, error, message in BAD:
            with pytest.raises(error, match=message):
                executor.shutdown(**arguments)
        assert executor.submit(int).result(20) == 0


# What a shutdown with a deadline calls the tasks that it leaves.


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


ODD = "4 (tests.support.shutting.index x2, threading.Event.wait x1, builtins.int x1)"


@pytest.mark.parametrize(
    "as_python_3_14",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(sys.version_info >= (3, 14), reason="it is so")),
    ],
)
def test_odd_functions(
    as_python_3_14: bool, gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partials, methods, builtins and arguments that look like ours have the names of their tasks."""

    class WorkItem:
        """Keeps its parts in one attribute."""

        def __init__(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            self.future, self.task = future, (fn, args, kwargs)

        def run(self) -> None:
            if self.future.set_running_or_notify_cancel():
                fn, args, kwargs = self.task
                self.future.set_result(fn(*args, **kwargs))

    if as_python_3_14:
        monkeypatch.setattr(concurrent.futures.thread, "_WorkItem", WorkItem)
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 0)
    pool.submit(functools.partial(index, 1))
    pool.submit(index, pool, None, query)
    pool.submit(threading.Event().wait, 0)
    pool.submit(int, "5", base=8)
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (tests.support.gates.Gate x1)", ODD)


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


def test_all_executors() -> None:
    """Those with workers, named and unnamed, with names and numbers, until nobody has them."""
    before = all_executors()
    named, unnamed = executors["default"], ThreadPoolExecutor(1)
    processes, other = ProcessPoolExecutor(1), ThreadPoolExecutor(1, "reports")
    assert [each for each in all_executors() if each not in (*before, named)] == [
        unnamed,
        processes,
        other,
    ]
    assert named in all_executors()
    assert (named.name, other.name) == ("default", "reports")
    assert unnamed.name.startswith("ThreadPoolExecutor-")
    assert processes.name.startswith("ProcessPoolExecutor-")
    assert ImmediateExecutor().name == "ImmediateExecutor"
    assert unnamed.submit(lambda: None).result(20) is None
    assert unnamed.stats().submitted == 1
    for each in (unnamed, processes, other):
        each.shutdown()
    del unnamed, processes, other, each
    assert {*all_executors()} - {*before, named} == set()
