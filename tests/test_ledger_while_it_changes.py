"""The ledger is read while other threads, and the collector, change it."""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from django_executors import ConnectionInfo, all_connections, connection_scope, release_connections
from django_executors.lifecycle.holder import current_holder
from django_executors.lifecycle.ledger import give_back_unused

from .test_ledger import WORKERS, quietly_drop


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """Have the collector run, and the threads change, as often as they can."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()  # what is there already need not be walked each time
    gc.set_threshold(20, 2, 2)
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.collect()


@pytest.mark.assert_no_open_connections(False)  # it drops connections behind Django's back
@pytest.mark.usefixtures("busy_collector")
def test_changes_while_it_is_read() -> None:
    """20,000 readings while 8 threads open, close and forget connections end without an error."""
    stop = threading.Event()

    def churn() -> int:
        opened = 0
        while not stop.is_set():
            for wrapper in (connections["sqlite"], connections.create_connection("sqlite")):
                wrapper.ensure_connection()
                opened += 1
            connections["sqlite"].close()
            if opened % 10 == 0:
                del connections["sqlite"]
            quietly_drop(wrapper)
        connections["sqlite"].close()
        return opened

    def read(times: int) -> list[ConnectionInfo]:
        return [found for _ in range(times) for found in all_connections() if found.age < 0]

    with concurrent.futures.ThreadPoolExecutor(WORKERS + 2) as pool:
        churning = [pool.submit(churn) for _ in range(WORKERS)]
        reading = [pool.submit(read, 10_000) for _ in range(2)]
        try:
            concurrent.futures.wait(reading, 90)
        finally:
            stop.set()
        assert [future.result(20) for future in reading] == [[], []]
        assert all(future.result(20) for future in churning)
        gc.collect()
        assert all_connections() == ()


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("read", [all_connections, release_connections])
def test_a_collection_while_it_is_read(read: Callable[[], object]) -> None:
    """A collection that strikes records out in the middle of a reading or of a release costs neither."""
    wrappers: list[Any] = []

    def collect_one(*event: object) -> None:
        if wrappers:
            quietly_drop(wrappers.pop(0))
            gc.collect()

    with connection_scope():
        for _ in range(50):
            wrappers.append(connections.create_connection("sqlite"))
            wrappers[-1].ensure_connection()
        # Called at each step of the reading, where a collection could come at any moment.
        sys.setprofile(collect_one)
        try:
            read()
        finally:
            sys.setprofile(None)
    wrappers.clear()
    gc.collect()
    assert all_connections() == ()


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize(
    "read", [all_connections, release_connections, lambda: give_back_unused(current_holder())]
)
def test_a_collection_at_each_allocation(read: Callable[[], object]) -> None:
    """Wherever in a reading a collection comes, in C code too, it costs nothing."""
    thresholds = gc.get_threshold()
    with connection_scope():
        for allocations in range(1, 60):
            for _ in range(5):
                wrapper: Any = connections.create_connection("sqlite")
                wrapper.ensure_connection()
                quietly_drop(wrapper)
                wrapper.itself = wrapper
            del wrapper
            unused = [{} for _ in range(100)]  # else Python has some ready, and allocates none
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            try:
                read()
            finally:
                gc.disable()
                gc.set_threshold(*thresholds)
            del unused
            gc.collect()
    assert all_connections() == ()
