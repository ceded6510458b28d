"""What the end of a thread leaves alone: what is lent, what another thread drops, what is Django's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from django_executors import ConnectionInfo, ThreadPoolExecutor, all_connections
from django_executors.lifecycle import guard

from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")
with_app = pytest.mark.usefixtures("watch_every_thread")


def run(target: Callable[[], object], name: str | None = None) -> None:
    """Run it in a plain thread, to its end."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def count() -> None:
    Entry.objects.count()


def the_only_one(postgres: PostgresObserver) -> ConnectionInfo:
    """Return what is open, which is one connection, on the server too."""
    (info,) = all_connections()
    pids = {info.backend_pid}
    assert wait_until(postgres.backends, lambda found: found == pids) == pids
    return info


def in_a_plain_thread(target: Callable[[], None]) -> None:
    run(target)


def in_a_task(target: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(target).result(10)


def in_an_initializer(target: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1, initializer=target) as pool:
        assert pool.submit(int).result(10) == 0


@with_app
@pytest.mark.parametrize("borrow", [in_a_plain_thread, in_a_task, in_an_initializer])
@pytest.mark.parametrize("kind", ["own", "copy"])
def test_lent_connection(
    kind: str, borrow: Callable[[Callable[[], None]], None], postgres: PostgresObserver
) -> None:
    """A lent wrapper is its lender's, even if it first connects in the borrower's thread."""
    lent = connections["default"] if kind == "own" else connections["default"].copy()
    assert lent.connection is None
    lent.inc_thread_sharing()

    def target() -> None:
        connections["default"] = lent
        lent.set_autocommit(False)
        Entry.objects.create(name="of the borrower")

    try:
        borrow(target)
        the_only_one(postgres)
        with lent.cursor() as cursor:
            cursor.execute("SELECT name FROM testapp_entry")
            assert cursor.fetchall() == [("of the borrower",)]
        lent.rollback()
    finally:
        lent.close()
        lent.dec_thread_sharing()
    assert all_connections() == ()
    assert not postgres.left()


def close_of_dead_thread(wrapper: Any) -> None:
    """Close what a thread has left behind, as nobody but a test should."""
    wrapper.inc_thread_sharing()
    wrapper.close()
    assert all_connections() == ()


@with_app
def test_thread_that_lent_its_connection(postgres: PostgresObserver) -> None:
    """A connection that a thread has lent to another stays open when the lender ends first."""
    lent: list[Any] = []

    def target() -> None:
        count()
        lent.append(connections["default"])
        lent[0].inc_thread_sharing()

    run(target)
    the_only_one(postgres)
    with lent[0].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM testapp_entry")
        assert cursor.fetchall() == [(0,)]
    close_of_dead_thread(lent.pop())


@with_app
def test_guard_that_another_thread_drops(postgres: PostgresObserver) -> None:
    """Where Python drops a thread's guard in another thread (a daemon's, at exit), it does nothing."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.extend([connections["default"], guard._local.end])

    run(target)
    kept.pop()
    the_only_one(postgres)
    close_of_dead_thread(kept.pop())


def test_without_the_app(postgres: PostgresObserver) -> None:
    """Without the app plain threads are Django's own business: what they open stays, and is seen."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.append(connections["default"])

    run(target, "left alone")
    assert the_only_one(postgres).thread_name == "left alone"
    close_of_dead_thread(kept.pop())
