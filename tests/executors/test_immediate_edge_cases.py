"""A task in its caller's thread, when the server has ended the connection, at a fork, at Ctrl-C."""

from __future__ import annotations

import contextlib

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from django_executors import ImmediateExecutor, ThreadPoolExecutor, release_connections
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.forks import fork
from tests.support.in_callers_thread import CLOSINGS, in_a_task, names
from tests.support.kept import backend
from tests.support.observers import PostgresObserver


def lose(alias: str) -> None:
    """Have the server end this thread's session, and meet the error."""
    sql = "KILL %s" if alias == "mariadb" else "SELECT pg_terminate_backend(%s, 20000)"
    admin = connections[alias].copy()
    with contextlib.closing(admin), admin.cursor() as cursor:
        cursor.execute(sql, [backend(alias)])
    backend(alias)


def test_killed_outside_a_transaction(alias: str) -> None:
    """A task whose connection the server has ended closes it and goes on with another, as anywhere."""
    for close in CLOSINGS:
        before = backend(alias)

        def task() -> object:
            with pytest.raises(OperationalError):
                lose(alias)
            close(alias)  # noqa: B023
            return backend(alias)

        after = ImmediateExecutor().submit(task).result(0)
        assert after != before, close
        assert backend(alias) == after


def test_killed_in_the_callers_transaction(postgres: PostgresObserver) -> None:
    """A caller whose session ends in a task gets Django's error, and a new session after `atomic`."""

    def task() -> None:
        postgres.kill()
        try:
            backend_pid()
        finally:
            connection.close()

    with pytest.raises(OperationalError), transaction.atomic():
        Entry.objects.create(name="lost")
        ImmediateExecutor().submit(task).result(0)
    assert names() == []
    Entry.objects.create(name="of a new session")
    assert names() == ["of a new session"]


def test_killed_in_the_tasks_transaction(alias: str) -> None:
    """A task whose own `atomic` loses its session has a new one behind it, by Django's own recovery."""
    before = backend(alias)

    def task() -> object:
        with pytest.raises(OperationalError), transaction.atomic(using=alias):
            Entry.objects.using(alias).create(name="lost")
            lose(alias)
        return backend(alias)

    assert ImmediateExecutor().submit(task).result(0) != before
    assert names(alias) == []
    assert connections[alias].autocommit


def test_an_error_ends_no_transaction(alias: str) -> None:
    """After an error that is no lost session, a task cannot close the caller's connection."""
    with transaction.atomic(using=alias):
        Entry.objects.using(alias).create(name="of the caller")

        def task() -> None:
            for close in CLOSINGS:
                with contextlib.suppress(DatabaseError), transaction.atomic(using=alias):
                    Entry.objects.using(alias).extra(where=["no_such_column"]).count()
                assert connections[alias].errors_occurred
                close(alias)

        in_a_task(task)
        assert names(alias) == ["of the caller"]
    assert names(alias) == ["of the caller"]


def test_a_fork_in_a_task_shares_no_socket() -> None:
    """The task could not close its caller's connection: the child does not use it."""
    before = backend_pid()

    def child() -> None:
        assert backend_pid() != before

    def task() -> tuple[int, str]:
        connections.close_all()  # as one does before a fork
        return fork(child)

    assert ImmediateExecutor().submit(task).result(0) == (0, "")
    assert backend_pid() == before


def test_release_connections_leaves_a_caller_without_autocommit_alone() -> None:
    """The caller's connection is dirty by the rules for workers, and is not the task's."""

    def caller() -> bool:
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
        mine = connection.connection
        ImmediateExecutor().submit(release_connections).result()
        return connection.connection is mine

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(caller).result(20)
