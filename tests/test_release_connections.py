"""`release_connections` gives back, inside a task, what the task has opened, and loses nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.transaction import TransactionManagementError

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)

from .observers import PostgresObserver
from .test_release import backend_pid
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "conn_max_age")


def count(*aliases: str) -> int:
    return sum(Entry.objects.using(alias).count() for alias in aliases or ("default",))


def in_a_task(fn: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(fn).result(20)


def in_a_scope(fn: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(connection_scope(fn)).result(20)


UNITS = pytest.mark.parametrize("run", [in_a_task, in_a_scope])
WORKERS = 8


def test_a_task_that_blocks_after_its_last_query(postgres: PostgresObserver) -> None:
    """While tasks do slow work the server has nothing of theirs, and their next query works."""
    slow, go_on = threading.Barrier(WORKERS + 1), threading.Event()

    def task() -> int:
        count("default", "other")
        release_connections()
        slow.wait(10)
        assert go_on.wait(10)
        return count("default", "other")

    pool = ThreadPoolExecutor(WORKERS)
    futures = [pool.submit(task) for _ in range(WORKERS)]
    slow.wait(10)
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")
    go_on.set()
    assert [future.result(20) for future in futures] == [0] * WORKERS
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


@UNITS
def test_what_was_committed_stays(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """Rows written before are there, and the work after it is on a new connection."""

    def body() -> tuple[int, int]:
        with transaction.atomic():
            Entry.objects.create(name="before")
        first = backend_pid()
        release_connections()
        assert not postgres.left()
        release_connections()  # nothing is held: nothing happens
        return first, backend_pid()

    first, second = run(body)
    assert first != second
    assert Entry.objects.count() == 1


def in_atomic(alias: str) -> None:
    with transaction.atomic(using=alias):
        Entry.objects.using(alias).create(name="in a transaction")
        refused(alias)


def in_raw_begin(alias: str) -> None:
    connections[alias].cursor().execute("BEGIN")
    Entry.objects.using(alias).create(name="in a transaction")
    refused(alias)
    connections[alias].cursor().execute("COMMIT")


def in_autocommit_off(alias: str) -> None:
    transaction.set_autocommit(False, using=alias)
    Entry.objects.using(alias).create(name="in a transaction")
    refused(alias)
    transaction.commit(using=alias)
    transaction.set_autocommit(True, using=alias)


def refused(alias: str) -> None:
    """Be refused, and find every connection as it was."""
    before = [(found.alias, found.backend_pid) for found in all_connections()]
    mine = connections[alias].connection
    with pytest.raises(TransactionManagementError, match=alias):
        release_connections()
    assert [(found.alias, found.backend_pid) for found in all_connections()] == before
    assert connections[alias].connection is mine


@UNITS
@pytest.mark.parametrize(
    ("transact", "alias"),
    [
        (in_atomic, "default"),
        (in_atomic, "sqlite"),
        (in_atomic, "mariadb"),
        (in_raw_begin, "default"),
        (in_raw_begin, "sqlite"),
        # Not MariaDB: its driver cannot see a transaction that was begun by hand.
        (in_autocommit_off, "default"),
        (in_autocommit_off, "sqlite"),
        (in_autocommit_off, "mariadb"),
    ],
)
def test_refuses_in_a_transaction(
    run: Callable[..., Any],
    transact: Callable[[str], None],
    alias: str,
    request: pytest.FixtureRequest,
) -> None:
    """In a transaction it refuses, closes nothing, and the transaction goes on to its commit."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def body() -> None:
        count("other")
        transact(alias)

    run(body)
    assert Entry.objects.using(alias).count() == 1
    connections[alias].close()
    assert all_connections() == ()


@pytest.mark.parametrize("where", ["the caller's thread", "a plain thread", "a done-callback"])
def test_outside_of_a_unit_does_nothing(where: str) -> None:
    """Outside of a task and of a scope it does nothing, inside a transaction neither."""

    def body() -> tuple[int, int]:
        first = backend_pid()
        release_connections()
        with transaction.atomic():
            release_connections()
            return first, backend_pid()

    pids: list[tuple[int, int]] = []
    if where == "the caller's thread":
        pids.append(body())
    elif where == "a plain thread":
        thread = threading.Thread(target=lambda: (pids.append(body()), connection.close()))
        thread.start()
        thread.join(20)
    else:
        go_on = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(go_on.wait, 10)
            future.add_done_callback(lambda _: pids.append(body()))
            go_on.set()
    ((first, second),) = pids
    assert first == second


def test_after_a_scope_it_does_nothing_again() -> None:
    """A scope that has ended, by an exception too, is over for `release_connections`."""
    with pytest.raises(LookupError), connection_scope():
        raise LookupError
    pid = backend_pid()
    release_connections()
    assert backend_pid() == pid


def test_open_before_the_scope_is_left_alone(postgres: PostgresObserver) -> None:
    """In a scope, what was open before it stays, in its transaction, which is nothing to refuse for."""
    with transaction.atomic():
        Entry.objects.create(name="before")
        mine = connection.connection
        with connection_scope():
            count("other")
            release_connections()
            assert not postgres.left("other")
            assert connection.connection is mine
    assert Entry.objects.count() == 1


def test_in_nested_scopes() -> None:
    """In an inner scope it gives back what the outer one has opened too."""
    with connection_scope():
        count("default")
        with connection_scope():
            count("other")
            release_connections()
            assert all_connections() == ()
            count("other")
        assert all_connections() == ()


def test_a_scope_inside_a_task_ends_no_task() -> None:
    """After a scope inside it, a task may still give back."""

    def task() -> tuple[object, ...]:
        with connection_scope():
            count("other")
        count()
        release_connections()
        return all_connections()

    assert in_a_task(task) == ()


def test_lent_is_left_alone() -> None:
    """A lent connection stays, inside the lender's transaction, which is nothing to refuse for."""
    lent: Any = connections["default"]
    with transaction.atomic():
        Entry.objects.create(name="of the lender")
        pid = backend_pid()
        lent.inc_thread_sharing()

        def task() -> tuple[int, int]:
            connections["default"] = lent
            count("other")
            release_connections()
            return count(), backend_pid()

        assert in_a_task(task) == (1, pid)
        lent.dec_thread_sharing()
        assert backend_pid() == pid
    assert Entry.objects.count() == 1


def test_under_a_running_loop() -> None:
    """Where an event loop runs it says so; in the function given to a thread it works."""

    def body() -> tuple[object, ...]:
        count()
        release_connections()
        return all_connections()

    async def main() -> tuple[object, ...]:
        with pytest.raises(SynchronousOnlyOperation, match="release_connections"):
            release_connections()
        with ThreadPoolExecutor(1) as pool:
            return await asyncio.get_running_loop().run_in_executor(pool, body)

    assert asyncio.run(main()) == ()


def test_django_pool() -> None:
    """With Django's pool the slot is free for others meanwhile."""
    pool = connections["pooled"].pool
    pool.open()
    slow, go_on = threading.Barrier(pool.max_size + 1), threading.Event()

    def task() -> None:
        count("pooled")
        release_connections()
        slow.wait(10)
        assert go_on.wait(10)

    executor = ThreadPoolExecutor(pool.max_size)
    futures = [executor.submit(task) for _ in range(pool.max_size)]
    slow.wait(10)
    slots = [pool.getconn(10) for _ in range(pool.max_size)]
    for slot in slots:
        pool.putconn(slot)
    go_on.set()
    for future in futures:
        future.result(20)
