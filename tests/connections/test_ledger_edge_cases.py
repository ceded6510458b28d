"""The ledger is read while other threads, and the collector, change it."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connections

from django_executors import (
    ConnectionInfo,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.lifecycle import incidents
from django_executors.lifecycle.holder import current_holder
from django_executors.lifecycle.ledger import give_back_unused
from private_servers import Postgres, start_postgres
from tests.connections.test_ledger import WORKERS, quietly_drop
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """Have the collector run, and the threads change, as often as they can."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()  # what is there already need not be walked each time
    gc.enable()
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


# When a server has no connection left, the log says who holds this process's, unasked.


LOGGER = "django_executors.lifecycle.incidents"


@pytest.fixture(autouse=True)
def none_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incidents, "_next", float("-inf"))


@pytest.fixture(scope="module")
def full_server() -> Iterator[Postgres]:
    """A PostgreSQL for two clients, and three superusers more."""
    settings = {"max_connections": "5", "superuser_reserved_connections": "3", "max_wal_senders": "0"}
    with start_postgres(settings=settings) as server:
        yield server


@pytest.fixture
def full(full_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias `full`: a user who is no superuser, on that server."""
    observer = PostgresObserver(full_server.url)
    observer.execute("DROP ROLE IF EXISTS shop")
    observer.execute("CREATE ROLE shop LOGIN PASSWORD 'shop'")
    observer.close()  # it would take one of the two
    entry = {
        **connections.settings["default"],
        "PORT": str(full_server.port),
        "USER": "shop",
        "PASSWORD": "shop",
        "NAME": "postgres",
    }
    monkeypatch.setitem(connections.settings, "full", entry)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


class Holds(Gate):
    """A task that holds a connection to the full server."""

    def __call__(self, *_: object) -> None:
        connections["full"].ensure_connection()
        super().__call__()


@pytest.mark.usefixtures("full")
def test_says_who_holds_what(caplog: pytest.LogCaptureFixture) -> None:
    """A connect refused by a full server logs one ERROR that lists this process's holders."""
    holds = Holds()
    with ThreadPoolExecutor(8, "shop") as pool:
        held = [pool.submit(holds) for _ in range(2)]
        holds.wait_for(2)
        more = [pool.submit(lambda: connections["full"].ensure_connection()) for _ in range(4)]
        raised = [future.exception(10) for future in more]
        holds.open()
        for future in held:
            future.result(10)
    assert all(isinstance(error, OperationalError) for error in raised)
    (said,) = errors(caplog)
    first, *lines = said.splitlines()
    assert first.startswith("alias=full the server has no connection left (")
    holders = [line for line in lines if line.startswith("alias=full thread=shop_")]
    assert len(holders) == 2
    for line in holders:
        assert " executor=shop task=tests.connections.test_ledger_edge_cases.Holds age=0." in line
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert record.levelno == logging.ERROR


@pytest.mark.usefixtures("full")
def test_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A refused connect of a thread that is no worker says it too."""
    holds = Holds()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(holds)
        holds.wait_for(2)
        with pytest.raises(OperationalError):
            connections["full"].ensure_connection()
        holds.open()
    assert len(errors(caplog)) == 1
    del connections["full"]


FULL = [
    "FATAL:  sorry, too many clients already",
    "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
    'FATAL:  too many connections for role "shop"',
    'FATAL:  too many connections for database "shop"',
    "FATAL:  no more connections allowed (max_client_conn)",
]


@pytest.mark.parametrize("said", FULL)
def test_what_servers_say(said: str, caplog: pytest.LogCaptureFixture) -> None:
    """What PostgreSQL and PgBouncer say when they are full is understood."""
    incidents.note("default", OperationalError(f"connection failed: {said}\n"))
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize("number", [1040, 1203, 1226])
def test_numbers_of_mysql(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """So are the numbers of MySQL's errors."""
    incidents.note("mariadb", OperationalError(number, "whatever its language"))
    assert len(errors(caplog)) == 1


def test_other_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Of an error that says something else there is no record."""
    incidents.note("default", OperationalError("password authentication failed"))
    incidents.note("mariadb", OperationalError(1045, "Access denied"))
    assert errors(caplog) == []


def test_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """There is at most one record in a minute, of all aliases together."""
    for now in (100.0, 100.1, 159.9):
        incidents.note("default", OperationalError(FULL[0]), now)
        incidents.note("other", OperationalError(FULL[0]), now)
    assert len(errors(caplog)) == 1
    incidents.note("other", OperationalError(FULL[0]), 160.0)
    assert len(errors(caplog)) == 2


def test_once_from_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    """Of threads that are refused at once one writes the record."""
    start = threading.Barrier(20)

    def refused() -> None:
        start.wait(10)
        incidents.note("default", OperationalError(FULL[0]))

    threads = [threading.Thread(target=refused) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(errors(caplog)) == 1
