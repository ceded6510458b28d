"""`all_connections` is true at any moment, for every thread, and keeps nothing alive."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import TestCase
from django.test.testcases import DatabaseOperationForbidden

from django_executors import (
    ConnectionInfo,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.gates import Gate
from tests.support.kept import results
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.opened import quietly_drop
from tests.support.running_cases import run_case


def look() -> ConnectionInfo:
    """Open a connection and find it."""
    Entry.objects.count()
    (found,) = all_connections()
    return found


def test_the_callers_own(postgres: PostgresObserver) -> None:
    """A record says which alias, vendor, backend and thread; outside of a pool there is no task."""
    found = look()
    assert (found.alias, found.vendor) == ("default", "postgresql")
    assert {found.backend_pid} == postgres.backends() == {backend_pid()}
    assert (found.thread_name, found.thread_ident) == ("MainThread", threading.get_ident())
    assert (found.executor, found.task) == (None, None)


def test_mariadb(mariadb: MariaDBObserver) -> None:
    """On MariaDB the number is that of CONNECTION_ID()."""
    connections["mariadb"].ensure_connection()
    (found,) = all_connections()
    assert (found.alias, found.vendor) == ("mariadb", "mysql")
    assert mariadb.backends() == {found.backend_pid}


def test_age_and_order() -> None:
    """Ages grow, are never below zero, and the oldest comes first. SQLite has no backend's number."""
    for alias in ("other", "default", "sqlite"):
        Entry.objects.using(alias).count()
    first, second = all_connections(), all_connections()
    assert [found.alias for found in first] == ["other", "default", "sqlite"]
    assert (first[2].vendor, first[2].backend_pid) == ("sqlite", None)
    ages = [found.age for found in first]
    assert ages == sorted(ages, reverse=True)
    assert all(0 <= before.age <= after.age for before, after in zip(first, second, strict=True))


def test_immutable() -> None:
    """A record is a frozen picture: it does not change with its connection, nor by hand."""
    found = look()
    connection.close()
    assert found.alias == "default"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.alias = "other"  # type: ignore[misc]


class Reports:
    """Callables of several kinds."""

    def rebuild(self) -> ConnectionInfo:
        return look()

    def __call__(self) -> ConnectionInfo:
        return look()

    def steps(self) -> Iterator[ConnectionInfo]:
        yield look()


NAMES: list[tuple[Callable[[], ConnectionInfo], str]] = [
    (look, "tests.connections.test_ledger.look"),
    (functools.partial(functools.partial(Reports.rebuild), Reports()), "test_ledger.Reports.rebuild"),
    (Reports().rebuild, "test_ledger.Reports.rebuild"),
    (Reports(), "test_ledger.Reports"),
    (lambda: look(), "test_ledger.<lambda>"),
    (transaction.atomic(look), "test_ledger.look"),
    (Reports().steps().__next__, "generator.__next__"),
]


def test_task_and_executor() -> None:
    """In a worker a record names the executor by its prefix, and the task by its qualified name."""
    pool = ThreadPoolExecutor(1, "reports_1")
    for task, name in NAMES:
        found = pool.submit(task).result(20)
        assert (found.executor, found.thread_name) == ("reports_1", "reports_1_0")
        assert str(found.task).endswith(name)


def test_executor_without_a_prefix() -> None:
    """Without a prefix the executor is called as the standard class calls its threads."""
    found = ThreadPoolExecutor(1).submit(look).result(20)
    assert str(found.executor).startswith("ThreadPoolExecutor-")
    assert found.thread_name == f"{found.executor}_0"


def test_no_task_in_a_callback(gate: Gate) -> None:
    """In a done-callback, which is no task, the executor is named and the task is not."""
    found: list[ConnectionInfo] = []
    with ThreadPoolExecutor(1, "reports") as pool:
        pool.submit(gate).add_done_callback(lambda _: found.append(look()))
        gate.open()
    assert [(one.executor, one.task) for one in found] == [("reports", None)]


def test_other_threads(gate: Gate, postgres: PostgresObserver) -> None:
    """While workers and other threads hold connections, it equals what the server says."""
    idents: set[int] = set()

    @connection_scope
    def body() -> None:
        Entry.objects.count()
        idents.add(threading.get_ident())
        gate()

    with ThreadPoolExecutor(2) as ours, concurrent.futures.ThreadPoolExecutor(2) as standard:
        futures = [pool.submit(body) for pool in (ours, standard) for _ in range(2)]
        gate.wait_for(4)
        found = all_connections()
        server = postgres.settled(4)
        gate.open()
        results(futures)
    assert {one.backend_pid for one in found} == server
    assert {one.thread_ident for one in found} == idents
    assert all_connections() == ()


def handler(alias: str) -> Any:
    return connections[alias]


def copied(alias: str) -> Any:
    return connections[alias].copy()


MAKERS = pytest.mark.parametrize("make", [handler, copied])


@MAKERS
def test_every_kind_of_wrapper(make: Callable[[str], Any], postgres: PostgresObserver) -> None:
    """Each is listed when it connects, and no longer when it closes."""
    wrapper = make("default")
    assert all_connections() == ()
    for _ in range(2):
        wrapper.ensure_connection()
        assert [found.backend_pid for found in all_connections()] == [*postgres.settled(1)]
        wrapper.close()
        assert all_connections() == ()
        wrapper.close()


@MAKERS
@pytest.mark.assert_no_open_connections(False)  # it finds what the collector has closed
def test_keeps_nothing_alive(make: Callable[[str], Any]) -> None:
    """A wrapper that nobody refers to any more dies by one collection, and its record goes with it."""

    def forget() -> weakref.ref[Any]:
        wrapper = make("default")
        wrapper.ensure_connection()
        quietly_drop(wrapper)
        if make is handler:
            del connections["default"]
        return weakref.ref(wrapper)

    def see_it_gone(dead: weakref.ref[Any]) -> None:
        gc.collect()
        assert dead() is None
        assert all_connections() == ()

    see_it_gone(forget())
    with ThreadPoolExecutor(1) as pool:
        see_it_gone(pool.submit(forget).result(20))  # a worker's own is closed when its task ends
        stats = pool.stats()
    assert (stats.connections_opened, stats.connections_closed) == (1, 1)


def test_close_inside_atomic(postgres: PostgresObserver) -> None:
    """A connection closed inside `atomic` is gone at once, although its wrapper still refers to it."""
    with transaction.atomic():
        look()
        connection.close()
        assert connection.connection is not None
        assert all_connections() == ()
    assert not postgres.left()
    look()


def test_a_killed_one_counts_until_its_thread_notices(postgres: PostgresObserver) -> None:
    """Open is meant as Django sees it: a killed connection is listed until it is closed."""
    look()
    postgres.kill()
    assert len(all_connections()) == 1
    connection.close()
    assert all_connections() == ()


def test_after_djangos_test_cases(postgres: PostgresObserver) -> None:
    """After a test case that has blocked an alias, every opening and closing is seen as before.

    Django blocks it by putting its own `connect` on the wrapper, and then ours back.
    """
    connections["other"]  # its wrapper is there when Django blocks it

    class Case(TestCase):
        databases = {"default"}  # noqa: RUF012

        def test(self) -> None:
            Entry.objects.create(name="of the test")
            with pytest.raises(DatabaseOperationForbidden):
                Entry.objects.using("other").count()
            assert [found.alias for found in all_connections()] == ["default"]

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert all_connections() == ()
    for alias in ("default", "other"):
        Entry.objects.using(alias).count()
    open_now = {found.backend_pid for found in all_connections()}
    assert open_now == postgres.backends("app") | postgres.backends("other")
    connections.close_all()
    assert all_connections() == ()


@pytest.mark.parametrize("run", ["task", "scope"])
def test_a_wrapper_kept_from_task_to_task(run: str, postgres: PostgresObserver) -> None:
    """A wrapper that a project's own object keeps is closed after each task that connected it."""
    kept: list[Any] = []

    def body() -> None:
        if not kept:
            kept.append(connections["default"])
        kept[0].ensure_connection()
        assert len(all_connections()) == 1

    pool_class = ThreadPoolExecutor if run == "task" else concurrent.futures.ThreadPoolExecutor
    with pool_class(1) as pool:
        for _ in range(3):
            pool.submit(body if run == "task" else connection_scope(body)).result(20)
            assert all_connections() == ()
            assert not postgres.left()
