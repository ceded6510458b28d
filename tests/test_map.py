"""`map(buffersize=…)`: the items are read only as far as the buffer goes."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from django_executors import ImmediateExecutor, QueueFull, ThreadPoolExecutor
from django_executors.testing import run_inline

from .draining import query
from .gates import Gate
from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


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
