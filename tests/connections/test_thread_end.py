"""When a thread ends, what it opened is closed in it, at once: counted on the server, collector off."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import connections

from django_executors import ConnectionInfo, ThreadPoolExecutor, all_connections
from django_executors.connections import thread_end
from tests.projects.testapp.models import Entry
from tests.support.endings import raw_begin
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.opened import assert_none_open, run_in_thread
from tests.support.waiting import wait_until

with_app = pytest.mark.usefixtures("watch_every_thread")


def count(*aliases: str) -> int:
    return sum(Entry.objects.using(alias).count() for alias in aliases or ("default",))


@pytest.fixture(autouse=True)
def books_of_threading() -> Iterator[None]:
    """No thread's end adds to what `threading` knows of."""
    before = set(threading.enumerate())
    yield
    assert not wait_until(lambda: set(threading.enumerate()) - before, lambda new: not new, within=20)


@pytest.fixture(autouse=True)
def nothing_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No thread's end prints anything."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("conn_max_age")
def test_pool_forgotten(postgres: PostgresObserver) -> None:
    """A pool that is dropped without `shutdown` leaves no connection and, by the fixture, no thread."""

    def request() -> None:
        pool = ThreadPoolExecutor(20, "forgotten")
        for future in [pool.submit(count) for _ in range(3)]:
            future.result(20)

    request()
    assert all_connections() == ()
    assert_none_open(postgres)


def test_worker_ends_after_a_callback(gate: Gate, postgres: PostgresObserver) -> None:
    """What a callback opens when the pool is already gone is closed when its worker has ended."""
    called = threading.Event()

    def callback(_: object) -> None:
        count()
        called.set()

    def forget() -> None:
        pool = ThreadPoolExecutor(1, "forgotten")
        pool.submit(gate).add_done_callback(callback)
        pool.shutdown(wait=False)

    forget()
    gate.open()
    assert called.wait(20)
    # Not its thread's absence from `threading.enumerate()`: that comes before its values are dropped.
    assert_none_open(postgres)


def test_worker_whose_initializer_raises(
    postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that ends before it ever waited closes what its initializer opened, without the app."""

    def initializer() -> None:
        count()
        raise LookupError("of the initializer")

    pool = ThreadPoolExecutor(1, "forgotten", initializer)
    assert isinstance(pool.submit(count).exception(20), BrokenThreadPool)
    with pytest.raises(BrokenThreadPool):
        pool.submit(count)
    assert_none_open(postgres)
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


@with_app
def test_plain_thread(postgres: PostgresObserver) -> None:
    """With the app, a thread that used the ORM has closed every alias when it has ended."""
    run_in_thread(lambda: count("default", "other", "sqlite"))
    assert_none_open(postgres)


@with_app
def test_thread_that_raises_in_a_transaction(
    postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that ends in an exception, with a transaction open, closes its connection."""
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    def target() -> None:
        raw_begin()
        raise LookupError("of the thread")

    run_in_thread(target)
    assert raised == [LookupError]
    assert_none_open(postgres)
    assert count() == 0


@with_app
def test_raw_thread(postgres: PostgresObserver) -> None:
    """A thread that `threading` knows nothing of closes too, and stays out of its books."""
    counted = threading.Event()

    def target() -> None:
        count()
        counted.set()

    _thread.start_new_thread(target, ())
    assert counted.wait(20)
    assert_none_open(postgres)


@with_app
def test_closing_that_raises(postgres: PostgresObserver, caplog: pytest.LogCaptureFixture) -> None:
    """An error on closing is silent in the dying thread, and logged once by the next live release."""

    def target() -> None:
        count("default", "other")

        def _close() -> None:
            raise OSError("of the close")

        vars(connections["default"])["_close"] = _close

    run_in_thread(target, "dying")
    assert_none_open(postgres)
    assert caplog.messages == []
    pool = ThreadPoolExecutor(1)
    assert [pool.submit(count).result(20) for _ in range(2)] == [0, 0]
    assert caplog.messages == ["thread=dying alias=default closing failed when the thread ended"]
    assert str(caplog.records[0].exc_info[1]) == "of the close"


# What the end of a thread leaves alone: what is lent, what another thread drops, what is Django's.


def left_by(use: Callable[[list[Any]], object], postgres: PostgresObserver) -> ConnectionInfo:
    """Return what is open, also on the server, when a thread that used it has ended; then close it."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.append(connections["default"])
        use(kept)

    run_in_thread(target, "left alone")
    del kept[1:]
    (info,) = all_connections()
    assert postgres.settled(1) == {info.backend_pid}
    wrapper = kept.pop()
    wrapper.inc_thread_sharing()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    wrapper.close()
    assert all_connections() == ()
    return info


@with_app
def test_thread_that_lent_its_connection(postgres: PostgresObserver) -> None:
    """A connection that a thread has lent to another stays open when the lender ends first."""
    left_by(lambda kept: kept[0].inc_thread_sharing(), postgres)


@with_app
def test_guard_that_another_thread_drops(postgres: PostgresObserver) -> None:
    """Where Python drops a thread's guard in another thread (a daemon's, at exit), it does nothing."""
    left_by(lambda kept: kept.append(thread_end._local.end), postgres)


def test_without_the_app(postgres: PostgresObserver) -> None:
    """Without the app plain threads are Django's own business: what they open stays, and is seen."""
    assert left_by(lambda kept: None, postgres).thread_name == "left alone"
