"""A task in its caller's thread ends no transaction of the caller's, and closes nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection, connections, transaction

from django_executors import ImmediateExecutor, connection_scope, release_connections

from .in_callers_thread import (
    CLOSINGS,
    PLACES,
    Abandoned,
    Close,
    Where,
    close_all,
    close_the_connection,
    in_a_callback,
    in_a_failing_task,
    in_a_pool_that_is_inline,
    in_a_task,
    names,
)
from .observers import PostgresObserver
from .subprocesses import run_python
from .test_release import backend_pid
from .testapp.models import Entry


@pytest.fixture(params=["default", "pooled", "sqlite", "mariadb"])
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    yield request.param
    connections[request.param].close()
    if request.param == "pooled":
        connections["pooled"].close_pool()  # type: ignore[attr-defined]


@PLACES
@CLOSINGS
def test_a_task_cannot_end_the_callers_transaction(alias: str, close: Close, where: Where) -> None:
    """Inside the caller's `atomic`, closing does nothing: same session, same rows, a clean roll back."""
    with pytest.raises(Abandoned), transaction.atomic(using=alias):
        Entry.objects.using(alias).create(name="of the caller")
        driver = connections[alias].connection
        where(close, alias)
        assert connections[alias].connection is driver
        assert names(alias) == ["of the caller"]
        assert connections[alias].in_atomic_block
        raise Abandoned
    assert connections[alias].connection is driver
    assert names(alias) == []


@PLACES
@CLOSINGS
def test_the_servers_session_is_the_same(close: Close, where: Where, postgres: PostgresObserver) -> None:
    """The server sees one client before, meanwhile and after, and the transaction commits."""
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        where(close, "default")
        assert backend_pid() == pid
        assert postgres.backends() == {pid}
    assert backend_pid() == pid
    assert names() == ["of the caller"]


def test_a_connection_older_than_the_library() -> None:
    """What was opened before `django_executors` was imported, a task cannot close either."""
    finished = run_python(
        """
        from django.db import connection, transaction
        with transaction.atomic():
            driver = connection.connection
            from django_executors import ImmediateExecutor
            ImmediateExecutor().submit(lambda: connection.close()).result(0)
            assert connection.connection is driver
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        connection.close()
        assert connection.connection is None
        """,
        settings="tests.settings",
    )
    assert (finished.returncode, finished.stderr) == (0, "")


@CLOSINGS
def test_outside_a_transaction(close: Close) -> None:
    """A caller's connection that is in no transaction stays too: it is the caller's to close."""
    pid = backend_pid()
    in_a_task(close, "default")
    assert backend_pid() == pid
    connection.close()
    assert connection.connection is None


@CLOSINGS
def test_hooks_for_the_commit_stay(close: Close) -> None:
    """What the caller registered by `transaction.on_commit` is called, which a real close forgets."""
    committed: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: committed.append("the caller's"))
        in_a_task(close, "default")
        in_a_task(transaction.on_commit, lambda: committed.append("the task's"))
        assert committed == []
    assert committed == ["the caller's", "the task's"]


def test_a_task_is_in_the_callers_transaction() -> None:
    """A task sees the caller's uncommitted rows; its own are rolled back with them, `atomic` or not."""
    executor = ImmediateExecutor()

    def add(name: str) -> list[str]:
        with transaction.atomic():
            Entry.objects.create(name=name)
        return names()

    def add_and_abandon(name: str) -> None:
        with transaction.atomic():
            add(name)
            raise Abandoned

    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        assert executor.submit(add, "of the task").result(0) == ["of the caller", "of the task"]
        assert isinstance(executor.submit(add_and_abandon, "abandoned").exception(0), Abandoned)
        assert names() == ["of the caller", "of the task"]
        raise Abandoned
    assert names() == []


def test_nothing_is_closed_when_a_task_ends(postgres: PostgresObserver) -> None:
    """What a task connects in the caller's thread stays open for the next one, and for the caller."""
    executor = ImmediateExecutor()
    assert connection.connection is None
    pids = {executor.submit(backend_pid).result(0) for _ in range(3)} | {backend_pid()}
    assert postgres.backends() == pids
    assert len(pids) == 1


@pytest.mark.parametrize("close", [close_the_connection, close_all])
@pytest.mark.parametrize("where", [in_a_task, in_a_callback])
def test_a_task_may_close_what_it_opened(close: Close, where: Where, postgres: PostgresObserver) -> None:
    """A connection that the task itself opened, on another alias, it closes; the caller's stays."""

    def task() -> None:
        assert names("other") == []
        assert postgres.backends("other")
        close("other")
        assert connections["other"].connection is None
        assert not postgres.left("other")
        assert names() == ["of the caller"]

    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        where(task)
        assert backend_pid() == pid
    assert names() == ["of the caller"]


def test_the_caller_may_close_afterwards(postgres: PostgresObserver) -> None:
    """When the task has ended, however it did, closing closes."""
    for where in (in_a_task, in_a_failing_task, in_a_callback, in_a_pool_that_is_inline):
        backend_pid()
        where(close_all, "default")
        assert postgres.backends()
        connection.close()
        assert connection.connection is None
        assert not postgres.left()


def test_scopes_and_release_connections_in_a_task(postgres: PostgresObserver) -> None:
    """A scope in a task closes what opened in it; `release_connections()` nothing of the caller's."""

    def task() -> None:
        with connection_scope():
            assert names("other") == []
            assert names() == []
        assert not postgres.left("other")
        release_connections()

    with connection_scope():
        pid = backend_pid()
        in_a_task(task)
        assert backend_pid() == pid
    assert connection.connection is None
    assert not postgres.left()
