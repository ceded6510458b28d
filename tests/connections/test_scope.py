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
from tests.support.observers import PostgresObserver

at_all_ages = pytest.mark.usefixtures("conn_max_age")


def count(*aliases: str) -> int:
    return sum(Entry.objects.using(alias).count() for alias in aliases or ("default",))


def aliases() -> list[str]:
    """Name what is open in the process."""
    return [found.alias for found in all_connections()]


def used_as_a_block(fn: Callable[[], Any]) -> Any:
    with connection_scope():
        return fn()


def used_bare(fn: Callable[[], Any]) -> Any:
    @connection_scope
    def scoped() -> Any:
        return fn()

    return scoped()


def used_called(fn: Callable[[], Any]) -> Any:
    @connection_scope()
    def scoped() -> Any:
        return fn()

    return scoped()


WAYS = pytest.mark.parametrize("way", [used_as_a_block, used_bare, used_called])


@at_all_ages
@WAYS
def test_closes_what_it_opened(way: Callable[..., Any], postgres: PostgresObserver) -> None:
    """As a block, a bare decorator or a called one, it closes every alias opened inside."""
    assert way(lambda: (count("default", "other"), aliases())) == (0, ["default", "other"])
    assert aliases() == []
    assert not postgres.left("app")
    assert not postgres.left("other")


@WAYS
def test_exceptions_pass_through(way: Callable[..., Any], postgres: PostgresObserver) -> None:
    """An exception of the body, an interruption too, passes through, and everything is closed."""
    for error in (LookupError("of the body"), KeyboardInterrupt(), SystemExit(3)):

        def body(error: BaseException = error) -> None:
            count()
            raise error

        with pytest.raises(type(error)) as raised:
            way(body)
        assert raised.value is error
        assert aliases() == []
    assert not postgres.left()


@pytest.mark.parametrize("dirty", [raw_begin, autocommit_off, open_pipeline, unbalanced_atomic])
@at_all_ages
def test_dirty(
    dirty: Callable[[], object], postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left in a transaction is closed, with a warning, and the next use starts afresh."""
    with connection_scope():
        kept = dirty()  # or the pipeline would end with its context manager
        assert aliases() == ["default"]
    assert aliases() == []
    assert not postgres.left()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert count() == 0
    assert connection.get_autocommit()
    del kept


@at_all_ages
def test_open_before_is_untouched(postgres: PostgresObserver) -> None:
    """A connection that was open when the scope began is the same one after it."""
    count()
    mine, before = connection.connection, postgres.backends()
    with connection_scope():
        count("default", "other")
    assert connection.connection is mine
    assert postgres.backends() == before
    assert not postgres.left("other")


def test_open_before_in_atomic_is_untouched() -> None:
    """So is its transaction, whatever is done to it inside."""
    with transaction.atomic():
        Entry.objects.create(name="before")
        with connection_scope():
            Entry.objects.create(name="inside")
            with transaction.atomic(using="other"):
                Entry.objects.using("other").create(name="inside")
        assert connection.in_atomic_block
        assert aliases() == ["default"]
        transaction.set_rollback(True)
    assert Entry.objects.count() == 0
    assert Entry.objects.using("other").count() == 1


def test_atomic_inside_is_committed() -> None:
    """A transaction that ends inside the scope has ended as it should."""

    @connection_scope
    @transaction.atomic
    def write() -> None:
        Entry.objects.create(name="inside")

    write()
    assert Entry.objects.count() == 1


@at_all_ages
def test_reopened_inside_is_closed(postgres: PostgresObserver) -> None:
    """A connection that was open before, closed inside and opened anew belongs to the scope."""
    count()
    with connection_scope():
        connection.close()
        count()
        assert aliases() == ["default"]
    assert aliases() == []
    assert not postgres.left()


@at_all_ages
def test_nested() -> None:
    """The inner scope closes what was opened since it began, the outer one the rest."""
    with connection_scope():
        count("default")
        with connection_scope():
            count("default", "other")
            assert aliases() == ["default", "other"]
        assert aliases() == ["default"]
        count("other")
    assert aliases() == []


def test_recursive() -> None:
    """A decorated function may call itself."""

    @connection_scope
    def recurse(depth: int) -> int:
        found = count("other" if depth % 2 else "default")
        return found + (recurse(depth - 1) if depth else 0)

    assert recurse(5) == 0
    assert aliases() == []


def test_keeps_the_functions_face() -> None:
    """A decorated function keeps its name, its arguments and its result."""

    @connection_scope
    def add(first: int, *, second: int) -> int:
        """Add."""
        return first + second

    assert add(1, second=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")


def test_new_wrappers_after_it() -> None:
    """Flags and hooks that the body left on a wrapper that it made are gone; older wrappers stay."""
    connection.close()
    del connections["default"]
    with connection_scope():
        connection.force_debug_cursor = True
        connection.execute_wrappers.append(lambda execute, *args: execute(*args))
        count()
    assert connection.force_debug_cursor is False
    assert connection.execute_wrappers == []


def test_older_wrappers_after_it() -> None:
    """A wrapper that was made before the scope keeps its hooks, although it connected inside."""
    connection.close()
    with connection.execute_wrapper(lambda execute, *args: execute(*args)):
        with connection_scope():
            count()
        assert len(connection.execute_wrappers) == 1


def test_entered_again_and_by_others() -> None:
    """One scope may be entered again inside itself, and by several threads at once."""
    scope = connection_scope()
    both = threading.Barrier(2)

    def body() -> None:
        with scope, scope:
            count()
            both.wait(10)

    threads = [threading.Thread(target=body) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert aliases() == []


def test_left_in_another_thread() -> None:
    """A scope that is left where it was not entered says so, and touches nothing there."""
    scope = connection_scope()
    thread = threading.Thread(target=scope.__enter__)
    thread.start()
    thread.join(10)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        with pytest.raises(RuntimeError, match="not entered"):
            scope.__exit__(None, None, None)
    assert Entry.objects.count() == 1


WORKERS = 8


@at_all_ages
def test_plain_threads(postgres: PostgresObserver) -> None:
    """Plain threads, all holding a connection at once, leave none, without the guard."""
    barrier = threading.Barrier(WORKERS, action=lambda: held.extend(all_connections()))
    held: list[object] = []

    @connection_scope
    def body() -> None:
        count()
        barrier.wait(10)

    threads = [threading.Thread(target=body) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(held) == WORKERS
    assert aliases() == []
    assert not postgres.left()


@at_all_ages
def test_standard_pool(postgres: PostgresObserver) -> None:
    """A standard pool whose threads live on holds nothing when its results are there."""
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(connection_scope(count), "default", "other") for _ in range(40)]:
            assert future.result(20) == 0
        assert aliases() == []
        assert not postgres.left("app")
        assert not postgres.left("other")


def test_inside_a_library_pools_worker_that_is_reused(postgres: PostgresObserver) -> None:
    """A thread's later scopes know nothing of its earlier ones."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            pids = pool.submit(connection_scope(lambda: (count(), postgres.settled(1))[1])).result(10)
            assert len(pids) == 1
            assert not postgres.left()


async def coroutine_function() -> None: ...


async def asynchronous_generator_function() -> AsyncIterator[None]:
    yield


def generator_function() -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("unfit", "named"),
    [
        (coroutine_function, "coroutine function coroutine_function"),
        (
            asynchronous_generator_function,
            "asynchronous generator function asynchronous_generator_function",
        ),
        (generator_function, "generator function generator_function"),
        (42, "not 42"),
        ("default", "not 'default'"),
        (functools.partial(coroutine_function), "coroutine_function"),
        (AsyncCallable(), "AsyncCallable"),
    ],
)
@pytest.mark.parametrize("decorator", [connection_scope, lambda fn: connection_scope()(fn)])
def test_unfit_objects(unfit: Any, named: str, decorator: Callable[[Any], Any]) -> None:
    """What it cannot bound, or cannot call, is refused at once by a message that names it."""
    with pytest.raises(TypeError, match=named):
        decorator(unfit)


def test_under_a_running_loop() -> None:
    """Entered where an event loop runs, it says so; in the function given to a thread it works."""

    async def main() -> int:
        with pytest.raises(SynchronousOnlyOperation, match="connection_scope"):
            connection_scope().__enter__()
        with pytest.raises(SynchronousOnlyOperation, match="connection_scope"):
            connection_scope(count)()
        return await asyncio.to_thread(connection_scope(count))

    assert asyncio.run(main()) == 0
    assert aliases() == []


def test_imports_and_opens_nothing() -> None:
    """A scope in which nothing happens opens nothing and makes no wrapper."""
    connections.close_all()

    def body() -> list[str]:
        with connection_scope():
            pass
        return [wrapper.alias for wrapper in connections.all(initialized_only=True)]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(body).result(10) == []


# `release_connections` gives back, inside a task, what the task has opened, and loses nothing.


def in_a_task(fn: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(fn).result(20)


def in_a_scope(fn: Callable[[], Any]) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(connection_scope(fn)).result(20)


UNITS = pytest.mark.parametrize("run", [in_a_task, in_a_scope])
WORKERS = 8


@pytest.mark.usefixtures("conn_max_age")
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
@pytest.mark.usefixtures("conn_max_age")
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
@pytest.mark.usefixtures("conn_max_age")
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
@pytest.mark.usefixtures("conn_max_age")
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


@pytest.mark.usefixtures("conn_max_age")
def test_after_a_scope_it_does_nothing_again() -> None:
    """A scope that has ended, by an exception too, is over for `release_connections`."""
    with pytest.raises(LookupError), connection_scope():
        raise LookupError
    pid = backend_pid()
    release_connections()
    assert backend_pid() == pid


@pytest.mark.usefixtures("conn_max_age")
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


@pytest.mark.usefixtures("conn_max_age")
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


@pytest.mark.usefixtures("conn_max_age")
def test_a_scope_inside_a_task_ends_no_task() -> None:
    """After a scope inside it, a task may still give back."""

    def task() -> tuple[object, ...]:
        with connection_scope():
            count("other")
        count()
        release_connections()
        return all_connections()

    assert in_a_task(task) == ()


@pytest.mark.usefixtures("conn_max_age")
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


@pytest.mark.usefixtures("conn_max_age")
def test_under_a_running_loop_release_connections() -> None:
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


@pytest.mark.usefixtures("conn_max_age")
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
