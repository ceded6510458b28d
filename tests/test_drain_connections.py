"""When `drain` returns, idle workers hold no connection, and are as many as before."""

from __future__ import annotations

import threading

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import ThreadPoolExecutor
from django_executors.testing import drain

from .draining import IDLE, assert_holds_nothing, check_accounting, drain_through, is_idle, query
from .gates import Gate
from .keeping import results
from .observers import PostgresObserver

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


@pytest.mark.usefixtures("conn_max_age")
def test_kept_while_idle(postgres: PostgresObserver) -> None:
    """Idle workers that keep a connection let go of it at once, and are as many as before."""
    workers, rounds = 2, 20
    pool = ThreadPoolExecutor(workers, conn_max_idle=IDLE)
    barrier = threading.Barrier(workers)

    def task() -> str:
        barrier.wait(10)
        return query()

    names = set()
    for _ in range(rounds):
        names |= set(results([pool.submit(task) for _ in range(workers)]))
        assert len(postgres.backends()) == workers
        drain(5)
        assert_holds_nothing(postgres)
    assert len(names) == workers
    check_accounting(pool)


@pytest.mark.usefixtures("conn_max_age")
def test_no_phantom_worker() -> None:
    """Draining makes no worker look idle that is not: a task may still wait for one that it submits."""
    pool = ThreadPoolExecutor(2, conn_max_idle=IDLE)
    for _ in range(20):
        pool.submit(query).result(10)
        drain()

    def outer() -> str:
        return pool.submit(query).result(10)

    assert pool.submit(outer).result(20)
    drain()
    check_accounting(pool)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Gate:
    """Hold up each close in a worker until the gate opens."""
    close, main = BaseDatabaseWrapper.close, threading.get_ident()

    def slow_close(self: BaseDatabaseWrapper) -> None:
        # Not current_thread(): where a thread has ended, it would leave a dummy.
        if self.connection is not None and threading.get_ident() != main:
            gate()
        close(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "close", slow_close)
    return gate


def test_waits_until_they_have_let_go(closing: Gate, postgres: PostgresObserver) -> None:
    """It returns when the kept connections are closed, not while they are being closed."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    pool.submit(query).result(10)
    assert not is_idle()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


def test_waits_for_what_callbacks_opened(closing: Gate, postgres: PostgresObserver) -> None:
    """What a callback opened is closed, too, when it returns."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    before.open()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)
    check_accounting(pool)


def test_waits_for_workers_that_end(closing: Gate, postgres: PostgresObserver) -> None:
    """A worker that ends holds nothing any more when it returns: its end closes what is left."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    pool.shutdown(wait=False)
    before.open()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


def test_sqlite_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite in memory, which Django never closes, does not hold it up."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": 60}
    monkeypatch.setitem(connections.settings, "memory", entry)

    def task() -> None:
        connections["memory"].ensure_connection()

    for conn_max_idle in (0.0, IDLE):
        with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
            pool.submit(task).result(10)
            drain(5)
            check_accounting(pool)
