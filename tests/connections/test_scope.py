"""`connection_scope` closes, at its end, what was opened inside it, and nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
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
from tests.projects.testapp.models import Entry
from tests.support.endings import (
    autocommit_off,
    backend_pid,
    open_pipeline,
    raw_begin,
    unbalanced_atomic,
)
from tests.support.gates import Gate
from tests.support.kept import results
from tests.support.observers import PostgresObserver
from tests.support.opened import run_in_thread


def count(*aliases: str) -> int:
    return sum(Entry.objects.using(alias).count() for alias in aliases or ("default",))


def open_aliases() -> list[str]:
    """Name what is open in the process."""
    return [found.alias for found in all_connections()]


def used_as_a_block(fn: Callable[[], Any]) -> Any:
    with connection_scope():
        return fn()


WAYS = {
    "a block": used_as_a_block,
    "bare": lambda fn: connection_scope(fn)(),
    "called": lambda fn: connection_scope()(fn)(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("conn_max_age")
def test_closes_what_it_opened(way: str, postgres: PostgresObserver) -> None:
    """As a block, a bare decorator or a called one, it closes every alias opened inside."""
    assert WAYS[way](lambda: (count("default", "other"), open_aliases())) == (0, ["default", "other"])
    assert open_aliases() == []
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.mark.parametrize("error", [LookupError("of the body"), KeyboardInterrupt(), SystemExit(3)])
def test_exceptions_pass_through(error: BaseException, postgres: PostgresObserver) -> None:
    """An exception of the body, an interruption too, passes through, and everything is closed."""
    with pytest.raises(type(error)) as raised, connection_scope():
        count()
        raise error
    assert raised.value is error
    assert open_aliases() == []
    assert not postgres.left()


@pytest.mark.parametrize("dirty", [raw_begin, autocommit_off, open_pipeline, unbalanced_atomic])
def test_dirty(
    dirty: Callable[[], object], postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left in a transaction is closed, with a warning, and the next use starts afresh."""
    with connection_scope():
        kept = dirty()  # or the pipeline would end with its context manager
        assert open_aliases() == ["default"]
    assert open_aliases() == []
    assert not postgres.left()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert count() == 0
    assert connection.get_autocommit()
    del kept


def test_open_before_is_untouched(postgres: PostgresObserver) -> None:
    """What was open when the scope began stays open, in its transaction, whatever is done inside."""
    with transaction.atomic():
        Entry.objects.create(name="before")
        mine = connection.connection
        with connection_scope():
            Entry.objects.create(name="inside")
            count("other")
            release_connections()  # it is nothing to refuse for, either
            assert open_aliases() == ["default"]
            count("other")
        assert connection.connection is mine
        assert open_aliases() == ["default"]
    assert count() == 2
    assert not postgres.left("other")


def test_reopened_inside_is_closed() -> None:
    """A connection that was open before, closed inside and opened again belongs to the scope."""
    count()
    with connection_scope():
        connection.close()
        count()
        assert open_aliases() == ["default"]
    assert open_aliases() == []


def test_nested() -> None:
    """The inner scope closes what was opened since it began, the outer one the rest."""
    with connection_scope():
        count("default")
        with connection_scope():
            count("default", "other")
            assert open_aliases() == ["default", "other"]
        assert open_aliases() == ["default"]
        count("other")
    assert open_aliases() == []


def test_keeps_the_functions_face() -> None:
    """A decorated function keeps its name, its arguments and its result, and may call itself."""

    @connection_scope
    def add(first: int, *, second: int) -> int:
        """Add."""
        count("other" if second % 2 else "default")
        return add(first + 1, second=second - 1) if second else first

    assert add(1, second=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert open_aliases() == []


def test_wrappers_after_it() -> None:
    """Hooks that the body left on a wrapper that it made are gone; an older wrapper keeps its own."""
    connection.close()
    del connections["default"]
    with connection_scope():
        connection.force_debug_cursor = True
        connection.execute_wrappers.append(lambda execute, *args: execute(*args))
        count()
    assert connection.force_debug_cursor is False
    assert connection.execute_wrappers == []
    with connection.execute_wrapper(lambda execute, *args: execute(*args)):
        with connection_scope():
            count()
        assert len(connection.execute_wrappers) == 1


def test_entered_again_and_by_others() -> None:
    """One scope may be entered again inside itself, and by several threads at once."""
    scope, both = connection_scope(), threading.Barrier(2)

    def body() -> None:
        with scope, scope:
            count()
            both.wait(20)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results([pool.submit(body) for _ in range(2)])
        assert open_aliases() == []


def test_left_in_another_thread() -> None:
    """A scope that is left where it was not entered says so, and touches nothing there."""
    scope = connection_scope()
    run_in_thread(scope.__enter__)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        with pytest.raises(RuntimeError, match="not entered"):
            scope.__exit__(None, None, None)
    assert count() == 1


def test_standard_pool(postgres: PostgresObserver) -> None:
    """A standard pool whose threads live on holds nothing when its results are there."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            seen = pool.submit(connection_scope(lambda: (count(), postgres.settled(1))))
            assert len(seen.result(20)[1]) == 1
            assert open_aliases() == []
            assert not postgres.left()


async def coroutine_function() -> None: ...


async def asynchronous_generator_function() -> AsyncIterator[None]:
    yield


def generator_function() -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self) -> None: ...


UNFIT: dict[str, Any] = {
    "coroutine function coroutine_function": coroutine_function,
    "asynchronous generator function asynchronous_gen": asynchronous_generator_function,
    "generator function generator_function": generator_function,
    "not 'default'": "default",
    "coroutine_function": functools.partial(coroutine_function),
    "AsyncCallable": AsyncCallable(),
}


def test_unfit_objects() -> None:
    """What it cannot bound, or cannot call, is refused at once by a message that names it."""
    for named, unfit in UNFIT.items():
        with pytest.raises(TypeError, match=named):
            connection_scope(unfit)
        with pytest.raises(TypeError, match=named):
            connection_scope()(unfit)


def test_under_a_running_loop() -> None:
    """Where an event loop runs both say so; in the function given to a thread they work."""

    @connection_scope
    def scoped() -> list[str]:
        count()
        release_connections()
        return open_aliases()

    async def main() -> list[str]:
        for refused in (connection_scope().__enter__, scoped):
            with pytest.raises(SynchronousOnlyOperation, match="connection_scope"):
                refused()
        with pytest.raises(SynchronousOnlyOperation, match="release_connections"):
            release_connections()
        return await asyncio.to_thread(scoped)

    assert asyncio.run(main()) == []


# `release_connections` gives back, inside a task, what the task has opened, and loses nothing.


def in_a_task(fn: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(fn).result(20)


def in_a_scope(fn: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(connection_scope(fn)).result(20)


@pytest.mark.usefixtures("conn_max_age")
def test_a_task_that_blocks_after_its_last_query(gate: Gate, postgres: PostgresObserver) -> None:
    """While a task does slow work the server has nothing of its worker's, and its next query works."""

    def task(*aliases: str) -> int:
        count(*aliases)
        release_connections()
        release_connections()  # nothing is held: nothing happens
        gate()
        return count("default", "other")

    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        pool.submit(count, "other").result(20)  # the worker keeps it
        future = pool.submit(task, "default")
        gate.wait_for()
        assert open_aliases() == []
        assert not postgres.left("app")
        assert not postgres.left("other")
        gate.open()
        assert future.result(20) == 0
    assert open_aliases() == []


@pytest.mark.parametrize("run", [in_a_task, in_a_scope])
def test_what_was_committed_stays(run: Callable[..., Any], postgres: PostgresObserver) -> None:
    """Rows written before are there, and the work after it is on a new connection."""

    def body() -> tuple[int, int]:
        with transaction.atomic():
            Entry.objects.create(name="before")
        first = backend_pid()
        release_connections()
        assert not postgres.left()
        return first, backend_pid()

    first, second = run(body)
    assert first != second
    assert count() == 1


def refused(alias: str) -> None:
    """Be refused, and find every connection as it was."""
    before, mine = open_aliases(), connections[alias].connection
    with pytest.raises(TransactionManagementError, match=alias):
        release_connections()
    assert open_aliases() == before
    assert connections[alias].connection is mine


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


@pytest.mark.parametrize(
    ("transact", "alias"),
    [
        (in_atomic, "default"),
        (in_raw_begin, "default"),
        (in_raw_begin, "sqlite"),
        # MariaDB's driver cannot see a transaction that was begun by hand, but autocommit.
        (in_autocommit_off, "mariadb"),
    ],
)
def test_refuses_in_a_transaction(
    transact: Callable[[str], None], alias: str, request: pytest.FixtureRequest
) -> None:
    """In a transaction it refuses, closes nothing, and the transaction goes on to its commit."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def body() -> None:
        count("other")
        transact(alias)

    in_a_task(body)
    assert open_aliases() == []
    assert count(alias) == 1


@pytest.mark.parametrize("where", ["the caller's thread", "a done-callback"])
def test_outside_of_a_unit_does_nothing(where: str, gate: Gate) -> None:
    """Outside of a task, and after a scope, it does nothing, inside a transaction neither."""
    pids: list[int] = []

    def body(_: object = None) -> None:
        with pytest.raises(LookupError), connection_scope():
            raise LookupError
        pids.append(backend_pid())
        release_connections()
        with transaction.atomic():
            release_connections()
            pids.append(backend_pid())

    if where == "the caller's thread":
        body()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(gate).add_done_callback(body)
            gate.open()
    first, second = pids
    assert first == second


def test_in_nested_scopes() -> None:
    """In an inner scope it gives back what the outer one has opened too."""
    with connection_scope():
        count("default")
        with connection_scope():
            count("other")
            release_connections()
            assert open_aliases() == []
            count("other")
        assert open_aliases() == []


def test_a_scope_inside_a_task_ends_no_task() -> None:
    """After a scope inside it, a task may still give back."""

    def task() -> list[str]:
        with connection_scope():
            count("other")
        count()
        release_connections()
        return open_aliases()

    assert in_a_task(task) == []
