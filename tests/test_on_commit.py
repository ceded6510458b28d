"""`submit_on_commit`: submitted when the transaction commits, cancelled when it does not."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.utils import translation

from django_executors import ImmediateExecutor, ThreadPoolExecutor, all_connections
from django_executors.execution.executor import Executor

from .observers import PostgresObserver
from .testapp.models import Entry
from .worlds import VARIABLE

pytestmark = pytest.mark.usefixtures("collector_off", "idle_before_and_after")


@pytest.fixture(params=[ThreadPoolExecutor, ImmediateExecutor])
def executor(request: pytest.FixtureRequest) -> Any:
    """Each kind in turn."""
    with request.param() as executor:
        yield executor


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def exists(name: str) -> bool:
    return Entry.objects.filter(name=name).exists()


def submitted(executor: Executor) -> int:
    return executor.stats().submitted


def test_commit(executor: Executor) -> None:
    """It is submitted at the commit, not before, and sees what was committed."""
    with transaction.atomic():
        Entry.objects.create(name="new")
        future = executor.submit_on_commit(exists, "new")
        with transaction.atomic():
            inner = executor.submit_on_commit(exists, name="new")
        assert submitted(executor) == 0
        assert not any([future.done(), future.running(), inner.done()])
    assert submitted(executor) == 2
    assert (future.result(10), inner.result(10)) == (True, True)


def test_without_a_transaction(executor: Executor) -> None:
    """Outside of `atomic`, with a connection open or without one, it is submitted at once."""
    assert executor.submit_on_commit(exists, "new").result(10) is False
    assert Entry.objects.count() == 0
    assert executor.submit_on_commit(exists, name="new").result(10) is False


def raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def is_set_back(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        transaction.set_rollback(True)
    return future


def raises_in_a_savepoint(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = raises(executor)
        assert future.cancelled()
        Entry.objects.create(name="of the outer one")
    return future


def raises_without_a_savepoint(executor: Executor) -> Future[bool]:
    with transaction.atomic(), pytest.raises(LookupError), transaction.atomic(savepoint=False):
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def is_closed(executor: Executor) -> Future[bool]:
    with transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        connection.close()
        assert future.cancelled()
    return future


def is_killed(executor: Executor) -> Future[bool]:
    with pytest.raises(DatabaseError), transaction.atomic():
        future = executor.submit_on_commit(exists, "new")
        connection.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")
    return future


def commit_fails(executor: Executor) -> Future[bool]:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(DatabaseError), transaction.atomic():
            future = executor.submit_on_commit(exists, "new")
            cursor.execute("INSERT INTO once VALUES (1), (1)")
    return future


def one_of_two_raises(executor: Executor) -> Future[bool]:
    with transaction.atomic(), pytest.raises(LookupError), transaction.atomic("other"):
        future = executor.submit_on_commit(exists, "new")
        raise LookupError
    return future


def the_outer_one_of_two_raises(executor: Executor) -> Future[bool]:
    with pytest.raises(LookupError), transaction.atomic():
        with transaction.atomic("other"):
            future = executor.submit_on_commit(exists, "new")
        assert not future.done()
        raise LookupError
    return future


@pytest.mark.parametrize(
    "roll_back",
    [
        raises,
        is_set_back,
        raises_in_a_savepoint,
        raises_without_a_savepoint,
        is_closed,
        is_killed,
        commit_fails,
        one_of_two_raises,
        the_outer_one_of_two_raises,
    ],
)
def test_rollback(executor: Executor, roll_back: Callable[[Executor], Future[bool]]) -> None:
    """However it is rolled back, the future is cancelled at that moment, and nothing is submitted."""
    future = roll_back(executor)
    assert future.cancelled()
    assert concurrent.futures.wait([future], 10).done == {future}
    assert list(concurrent.futures.as_completed([future], 10)) == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(10)
    assert submitted(executor) == 0


@pytest.mark.usefixtures("watch_every_thread")
def test_thread_ends_in_a_transaction(pool: ThreadPoolExecutor) -> None:
    """A thread that ends without a commit cancels, however its transaction was left."""
    found: list[Future[bool]] = []

    def leave() -> None:
        transaction.atomic().__enter__()
        found.append(pool.submit_on_commit(exists, "new"))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join(10)
    with pytest.raises(concurrent.futures.CancelledError):
        found[0].result(10)
    assert submitted(pool) == 0


def test_two_databases(pool: ThreadPoolExecutor) -> None:
    """Within transactions on two aliases it waits for both, whichever comes first."""
    with transaction.atomic():
        with transaction.atomic("other"):
            future = pool.submit_on_commit(exists, "new")
        assert submitted(pool) == 0
    assert future.result(10) is False


def test_callbacks_of_a_cancelled_one(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """They run elsewhere, may use the ORM, and leave nothing; the caller's transaction goes on."""
    ran_in: list[threading.Thread] = []
    done = threading.Event()

    def fails(_: object) -> None:
        raise LookupError

    def callback(future: Future[bool]) -> None:
        assert future.cancelled()
        assert not exists("of the outer one")
        ran_in.append(threading.current_thread())
        done.set()

    with transaction.atomic():
        with pytest.raises(LookupError), transaction.atomic():
            future = pool.submit_on_commit(exists, "new")
            future.add_done_callback(fails)
            future.add_done_callback(callback)
            raise LookupError
        Entry.objects.create(name="of the outer one")
        assert done.wait(10)
    assert exists("of the outer one")
    assert threading.current_thread() not in ran_in
    connection.close()
    assert not postgres.left()
    assert all_connections() == ()


def test_it_is_called_as_it_was_then(executor: Executor) -> None:
    """It has the contextvars and the language of the moment in which it was handed over."""
    with transaction.atomic():
        token = VARIABLE.set("then")
        with translation.override("de"):
            future = executor.submit_on_commit(lambda: (VARIABLE.get(), translation.get_language()))
        VARIABLE.reset(token)
    assert future.result(10) == ("then", "de")


def test_without_autocommit(executor: Executor) -> None:
    """Where nobody can tell when it commits, Django's own error says so, and nothing is submitted."""
    with transaction.atomic("other"):
        connection.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError, match="manual transaction management"):
                executor.submit_on_commit(exists, "new")
        finally:
            connection.rollback()
            connection.set_autocommit(True)
    assert submitted(executor) == 0
