"""The ledger is read while other threads, and the collector, change it."""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connections

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.connections import incidents
from tests.support.gates import Gate
from tests.support.kept import results
from tests.support.observers import PostgresObserver
from tests.support.opened import quietly_drop

READS = pytest.mark.parametrize("read", [all_connections, release_connections])


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Have collections walk only what the test makes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()


def abandoned_connection() -> Any:
    wrapper: Any = connections.create_connection("sqlite")
    wrapper.ensure_connection()
    return wrapper


@pytest.mark.assert_no_open_connections(False)  # it drops connections behind Django's back
@pytest.mark.usefixtures("small_heap")
def test_changes_while_it_is_read() -> None:
    """Readings while threads open, close and forget connections, and the collector runs, are sound."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    stop, churning = threading.Event(), threading.Barrier(4 + 1)

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
            if opened == 2:
                churning.wait(20)
        connections["sqlite"].close()
        return opened

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(churn) for _ in range(4)]
        churning.wait(20)
        gc.enable()
        gc.set_threshold(20, 2, 2)
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(500):
                assert all(found.age >= 0 for found in all_connections())
        finally:
            sys.setswitchinterval(interval)
            gc.set_threshold(*thresholds)
            gc.disable()
            stop.set()
        results(futures)
        gc.collect()
        assert all_connections() == ()


@READS
@pytest.mark.usefixtures("small_heap")
def test_a_collection_while_it_is_read(read: Callable[[], object]) -> None:
    """A collection that strikes records out in the middle of a reading or of a release costs neither."""
    wrappers: list[Any] = []

    def collect_one(*event: object) -> None:
        if wrappers:
            quietly_drop(wrappers.pop(0))
            gc.collect()

    with connection_scope():
        wrappers.extend(abandoned_connection() for _ in range(50))
        # Called at each step of the reading, where a collection could come at any moment.
        sys.setprofile(collect_one)
        try:
            read()
        finally:
            sys.setprofile(None)
    wrappers.clear()
    gc.collect()
    assert all_connections() == ()


@READS
@pytest.mark.usefixtures("small_heap")
def test_a_collection_at_each_allocation(read: Callable[[], object]) -> None:
    """Wherever in a reading a collection comes, in C code too, it costs nothing."""
    thresholds = gc.get_threshold()
    with connection_scope():
        for allocations in range(1, 60):
            for _ in range(5):
                wrapper = abandoned_connection()
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


# When a server has no connection left, the log says who holds this process's, unasked.


FULL = "FATAL:  sorry, too many clients already"


@pytest.fixture(autouse=True)
def none_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incidents, "_next", float("-inf"))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> Iterator[None]:
    """The alias `full`: a user who may have two connections."""
    postgres.execute("CREATE ROLE shop LOGIN CONNECTION LIMIT 2 PASSWORD 'shop'")
    entry = {**connections.settings["default"], "USER": "shop", "PASSWORD": "shop"}
    monkeypatch.setitem(connections.settings, "full", entry)
    yield
    del connections["full"]
    assert not postgres.left()
    postgres.execute("DROP ROLE shop")


class Holds(Gate):
    """A task that holds a connection to the full server."""

    def __call__(self, *_: object) -> None:
        connections["full"].ensure_connection()
        super().__call__()


@pytest.mark.usefixtures("full")
def test_says_who_holds_what(caplog: pytest.LogCaptureFixture) -> None:
    """Connects refused by a full server log one ERROR that lists this process's holders."""
    holds = Holds()
    with ThreadPoolExecutor(4, "shop") as pool:
        held = [pool.submit(holds) for _ in range(2)]
        holds.wait_for(2)
        for _ in range(2):
            with pytest.raises(OperationalError, match="too many connections"):
                connections["full"].ensure_connection()
            refused = pool.submit(lambda: connections["full"].ensure_connection())
            assert isinstance(refused.exception(20), OperationalError)
        holds.open()
        results(held)
    (said,) = errors(caplog)
    first, *lines = said.splitlines()
    assert first.startswith("alias=full the server has no connection left (")
    holders = [line for line in lines if line.startswith("alias=full thread=shop_")]
    assert len(holders) == 2
    for line in holders:
        assert " executor=shop task=tests.connections.test_ledger_edge_cases.Holds age=" in line


SAID = {
    FULL: True,
    "FATAL:  remaining connection slots are reserved for roles with SUPERUSER": True,
    'FATAL:  too many connections for database "shop"': True,
    "FATAL:  no more connections allowed (max_client_conn)": True,
    1040: True,
    1203: True,
    1226: True,
    "FATAL:  password authentication failed": False,
    1045: False,
}


def test_what_servers_say(caplog: pytest.LogCaptureFixture) -> None:
    """What PostgreSQL and PgBouncer say when they are full is understood, and MySQL's numbers."""
    for number, (said, is_full) in enumerate(SAID.items()):
        caplog.clear()
        incidents.note("default", OperationalError(said, "whatever its language"), number * 100.0)
        assert len(errors(caplog)) == is_full, said


def test_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """There is at most one record in a minute, of all aliases together."""
    for now in (100.0, 100.1, 159.9):
        incidents.note("default", OperationalError(FULL), now)
        incidents.note("other", OperationalError(FULL), now)
    assert len(errors(caplog)) == 1
    incidents.note("other", OperationalError(FULL), 160.0)
    assert len(errors(caplog)) == 2
