"""`all_connections` is true at any moment, for every thread, and keeps nothing alive."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import gc
import threading
import unittest
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test import SimpleTestCase, TestCase
from django.test.testcases import DatabaseOperationForbidden

from django_executors import (
    ConnectionInfo,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.observers import MariaDBObserver, PostgresObserver

WORKERS = 8


def pids() -> set[int | None]:
    return {found.backend_pid for found in all_connections()}


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
    with connections["mariadb"].cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        (number,) = cursor.fetchone()
    (found,) = all_connections()
    assert (found.alias, found.vendor, found.backend_pid) == ("mariadb", "mysql", number)
    assert mariadb.backends() == {number}


def test_sqlite() -> None:
    """SQLite has no server, so no number."""
    Entry.objects.using("sqlite").count()
    (found,) = all_connections()
    assert (found.alias, found.vendor, found.backend_pid) == ("sqlite", "sqlite", None)


def test_age_and_order() -> None:
    """Ages grow, are never below zero, and the oldest comes first."""
    for alias in ("other", "default", "sqlite"):
        Entry.objects.using(alias).count()
    first, second = all_connections(), all_connections()
    assert [found.alias for found in first] == ["other", "default", "sqlite"]
    ages = [found.age for found in first]
    assert ages == sorted(ages, reverse=True)
    assert all(0 <= before.age <= after.age for before, after in zip(first, second, strict=True))


def test_immutable() -> None:
    """A record is a frozen picture: it does not change with its connection, nor by hand."""
    found = look()
    connection.close()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.alias = "other"  # type: ignore[misc]
    assert found.alias == "default"
    assert isinstance(all_connections(), tuple)


class Reports:
    """Callables of several kinds."""

    def rebuild(self) -> ConnectionInfo:
        return look()

    @classmethod
    def of_the_class(cls) -> ConnectionInfo:
        return look()

    @staticmethod
    def static() -> ConnectionInfo:
        return look()

    def __call__(self) -> ConnectionInfo:
        return look()

    def steps(self) -> Iterator[ConnectionInfo]:
        while True:
            yield look()


HERE = "tests.connections.test_ledger"


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (look, f"{HERE}.look"),
        (functools.partial(look), f"{HERE}.look"),
        (functools.partial(functools.partial(Reports.rebuild), Reports()), f"{HERE}.Reports.rebuild"),
        (Reports().rebuild, f"{HERE}.Reports.rebuild"),
        (Reports.of_the_class, f"{HERE}.Reports.of_the_class"),
        (Reports.static, f"{HERE}.Reports.static"),
        (Reports(), f"{HERE}.Reports"),
        (lambda: look(), f"{HERE}.<lambda>"),
        (transaction.atomic(look), f"{HERE}.look"),
        (Reports().steps().__next__, "generator.__next__"),
        (functools.partial(look).__call__, "partial.__call__"),
    ],
)
@pytest.mark.parametrize("prefix", ["reports", "my_pool_1"])
def test_task_and_executor(task: Callable[[], ConnectionInfo], name: str, prefix: str) -> None:
    """In a worker a record names the executor by its prefix, and the task by its qualified name."""
    found = ThreadPoolExecutor(1, prefix).submit(task).result(10)
    assert found.executor == prefix
    assert found.thread_name == f"{prefix}_0"
    assert found.task is not None
    assert found.task.endswith(name)


def test_executor_without_a_prefix() -> None:
    """Without a prefix the executor is called as the standard class calls its threads."""
    found = ThreadPoolExecutor(1).submit(look).result(10)
    assert found.executor is not None
    assert found.executor.startswith("ThreadPoolExecutor-")
    assert found.thread_name == f"{found.executor}_0"


def test_no_task_in_a_callback() -> None:
    """In a done-callback, which is no task, the executor is named and the task is not."""
    found: list[ConnectionInfo] = []
    go_on = threading.Event()
    with ThreadPoolExecutor(1, "reports") as pool:
        future = pool.submit(go_on.wait, 10)
        future.add_done_callback(lambda _: found.append(look()))
        go_on.set()
    assert [(one.executor, one.task) for one in found] == [("reports", None)]


@pytest.mark.parametrize("kind", ["ours", "standard", "plain threads"])
def test_other_threads(kind: str, postgres: PostgresObserver) -> None:
    """While all threads stand at a barrier, it equals what the server says."""
    together, seen = threading.Barrier(WORKERS + 1), threading.Event()
    idents: set[int] = set()

    @connection_scope
    def body() -> None:
        Entry.objects.count()
        idents.add(threading.get_ident())
        together.wait(10)
        assert seen.wait(10)

    connections.close_all()
    threads = [threading.Thread(target=body) for _ in range(WORKERS if kind == "plain threads" else 0)]
    pool: concurrent.futures.Executor
    pool = (ThreadPoolExecutor if kind == "ours" else concurrent.futures.ThreadPoolExecutor)(WORKERS)
    with pool:
        for thread in threads:
            thread.start()
        futures = [] if threads else [pool.submit(body) for _ in range(WORKERS)]
        together.wait(10)
        found = all_connections()
        server = postgres.settled(WORKERS)
        mine = [one.connection for one in connections.all() if one.connection is not None]
        seen.set()
        for future in futures:
            future.result(10)
        for thread in threads:
            thread.join(10)
    assert len(found) == WORKERS
    assert {one.backend_pid for one in found} == server
    assert {one.thread_ident for one in found} == idents
    assert mine == []
    assert all_connections() == ()


def handler(alias: str) -> Any:
    return connections[alias]


def copied(alias: str) -> Any:
    return connections[alias].copy()


def created(alias: str) -> Any:
    return connections.create_connection(alias)


def quietly_drop(wrapper: Any) -> None:
    """Close behind the wrapper's back what a driver would warn of when the collector finds it open."""
    if wrapper.connection is not None:
        wrapper.connection.close()
        wrapper.connection = None


MAKERS = pytest.mark.parametrize("make", [handler, copied, created])


@MAKERS
def test_every_kind_of_wrapper(make: Callable[[str], Any], postgres: PostgresObserver) -> None:
    """Each is listed when it connects, and no longer when it closes."""
    wrapper = make("default")
    assert all_connections() == ()
    for _ in range(3):
        wrapper.ensure_connection()
        assert pids() == postgres.settled(1)
        assert len(all_connections()) == 1
        wrapper.close()
        assert all_connections() == ()
        wrapper.close()
    assert not postgres.left()


@MAKERS
def test_keeps_nothing_alive(make: Callable[[str], Any], postgres: PostgresObserver) -> None:
    """A wrapper that nobody refers to any more dies by one collection, and its record goes with it."""

    def forget() -> weakref.ref[Any]:
        wrapper = make("default")
        wrapper.ensure_connection()
        quietly_drop(wrapper)
        if make is handler:
            del connections["default"]
        return weakref.ref(wrapper)

    dead = forget()
    gc.collect()
    assert dead() is None
    assert all_connections() == ()


def test_vanishes_on_close_all() -> None:
    """`connections.close_all()` takes the caller's records away, and no other thread's."""
    here, go_on = threading.Event(), threading.Event()

    def task() -> None:
        Entry.objects.count()
        here.set()
        assert go_on.wait(10)

    future = ThreadPoolExecutor(1, "theirs").submit(task)
    assert here.wait(10)
    for alias in ("default", "other", "sqlite"):
        Entry.objects.using(alias).count()
    assert len(all_connections()) == 4
    connections.close_all()
    assert [found.executor for found in all_connections()] == ["theirs"]
    go_on.set()
    future.result(10)
    assert all_connections() == ()


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


class Blocked(SimpleTestCase):
    """Django blocks the database by putting its own `connect` on each wrapper, and then ours back."""

    __test__ = False  # run below

    def runTest(self) -> None:
        with pytest.raises(DatabaseOperationForbidden):
            Entry.objects.count()


class HalfBlocked(TestCase):
    """Blocks all aliases but one."""

    __test__ = False  # run below
    databases = {"default"}  # noqa: RUF012

    def runTest(self) -> None:
        Entry.objects.create(name="of the test")
        with pytest.raises(DatabaseOperationForbidden):
            Entry.objects.using("other").count()
        assert [found.alias for found in all_connections()] == ["default"]


@pytest.mark.parametrize("case", [Blocked, HalfBlocked])
def test_after_djangos_test_cases(
    case: Callable[[], unittest.TestCase], postgres: PostgresObserver
) -> None:
    """After a test case that has blocked the database, every opening and closing is seen as before."""
    assert isinstance(connections["other"], object)  # its wrapper is there when Django blocks it
    result = unittest.TestResult()
    unittest.TestSuite([case()]).run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert all_connections() == ()
    for alias in ("default", "other"):
        Entry.objects.using(alias).count()
    assert pids() == postgres.backends("app") | postgres.backends("other")
    connections.close_all()
    assert all_connections() == ()


@pytest.mark.parametrize("run", ["task", "scope"])
def test_a_wrapper_kept_from_task_to_task(run: str, postgres: PostgresObserver) -> None:
    """A wrapper that a project's own object keeps is closed after each task that connected it anew."""
    kept: list[Any] = []

    def body() -> None:
        if not kept:
            kept.append(connections["default"])
        kept[0].ensure_connection()
        assert len(all_connections()) == 1

    with concurrent.futures.ThreadPoolExecutor(1) as standard:
        pool = ThreadPoolExecutor(1)
        for _ in range(3):
            future = pool.submit(body) if run == "task" else standard.submit(connection_scope(body))
            future.result(10)
            assert all_connections() == ()
            assert not postgres.left()
