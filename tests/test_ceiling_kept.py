"""Under a ceiling a kept connection goes to whoever waits for one."""

from __future__ import annotations

import threading

import pytest

from django_executors import ConnectionLimitTimeout, ThreadPoolExecutor, all_connections

from .ceilings import ceiling, waits
from .gates import Gate
from .keeping import backend, held_up, results
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


def opened_and_closed(pool: ThreadPoolExecutor) -> tuple[int, int]:
    stats = pool.stats()
    return stats.connections_opened, stats.connections_closed


@pytest.mark.usefixtures("conn_max_age")
def test_kept_for_a_task_that_makes_no_query(gate: Gate) -> None:
    """A connection that is kept for a task which makes no query goes to a worker that waits for it."""
    with ceiling(1, timeout=10.0), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        with held_up(busy):
            first = busy.submit(backend)
            busy.submit(gate)
            last = busy.submit(backend)
        gate.wait_for()
        assert other.submit(Entry.objects.count).result(10) == 0
        gate.open()
        assert last.result(10) != first.result(10)
    assert all_connections() == ()


@pytest.mark.usefixtures("conn_max_age")
def test_what_was_taken_away_is_waited_for(gate: Gate, holding: Gate) -> None:
    """A worker whose kept connection went to another waits in turn like everybody."""
    with ceiling(1, timeout=0.05), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        with held_up(busy):
            first = busy.submit(backend)
            busy.submit(gate)
            last = busy.submit(backend)
        gate.wait_for()
        held = other.submit(holding)
        holding.wait_for()
        assert opened_and_closed(busy) == (1, 1)
        gate.open()
        first.result(10)
        assert isinstance(last.exception(10), ConnectionLimitTimeout)
        holding.open()
        held.result(10)
        assert opened_and_closed(busy) == opened_and_closed(other) == (1, 1)


def test_busy_pool_gives_way() -> None:
    """A pool with a long queue gives its permit up after a task if another waits for it."""
    began, go_on = threading.Event(), threading.Event()

    def first() -> None:
        Entry.objects.count()
        began.set()
        assert go_on.wait(10)

    order: list[str] = []

    def note(name: str) -> None:
        Entry.objects.count()
        order.append(name)

    with ceiling(1), ThreadPoolExecutor(1) as busy, ThreadPoolExecutor(1) as other:
        futures = [busy.submit(first), *(busy.submit(note, "busy") for _ in range(3))]
        assert began.wait(10)
        futures.append(other.submit(note, "other"))
        wait_until(lambda: waits("default"))
        go_on.set()
        results(futures)
    assert order[0] == "other"


def test_idle_worker_keeps_none() -> None:
    """With conn_max_idle set, a connection under a ceiling is closed before the future resolves."""
    found: list[object] = []
    go_on = threading.Event()
    with ceiling(1), ThreadPoolExecutor(1, conn_max_idle=60.0) as pool:
        future = pool.submit(lambda: (Entry.objects.count(), go_on.wait(10)))
        future.add_done_callback(lambda _: found.append(all_connections()))
        go_on.set()
    assert found == [()]


def test_kept_for_work_that_another_has_taken(gate: Gate) -> None:
    """With conn_max_idle set, what was kept for queued work goes as soon as its worker is idle."""
    other, release_other = threading.Event(), threading.Event()

    def occupy() -> None:
        other.set()
        assert release_other.wait(10)

    with ceiling(1), ThreadPoolExecutor(2, conn_max_idle=60.0) as pool:
        busy = pool.submit(occupy)
        assert other.wait(10)
        go_on = threading.Event()
        keeps = pool.submit(lambda: (Entry.objects.count(), go_on.wait(10)))
        keeps.add_done_callback(gate)
        queued = pool.submit(lambda: None)
        go_on.set()
        gate.wait_for()
        assert len(all_connections()) == 1
        release_other.set()
        queued.result(10)
        busy.result(10)
        gate.open()
        assert wait_until(all_connections, lambda found: not found) == ()
