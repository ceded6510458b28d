"""A task in its caller's thread, when the server has ended the connection."""

from __future__ import annotations

import contextlib

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from django_executors import ImmediateExecutor

from .in_callers_thread import CLOSINGS, Close, in_a_task, names
from .keeping import backend
from .observers import PostgresObserver
from .test_release import backend_pid
from .testapp.models import Entry


@CLOSINGS
def test_killed_outside_a_transaction(close: Close, postgres: PostgresObserver) -> None:
    """A task whose connection the server has ended closes it and goes on with another, as anywhere."""
    before = backend_pid()

    def task() -> int:
        postgres.kill()
        with pytest.raises(OperationalError):
            backend_pid()
        close("default")
        return backend_pid()

    after = ImmediateExecutor().submit(task).result(0)
    assert after != before
    assert backend_pid() == after


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


def test_killed_in_the_tasks_transaction(postgres: PostgresObserver) -> None:
    """A task whose own `atomic` loses its session has a new one behind it, by Django's own recovery."""
    before = backend_pid()

    def task() -> int:
        with pytest.raises(OperationalError), transaction.atomic():
            Entry.objects.create(name="lost")
            postgres.kill()
            backend_pid()
        return backend_pid()

    assert ImmediateExecutor().submit(task).result(0) != before
    assert names() == []


def lose_mariadb() -> None:
    """Have the server end this thread's session, and meet the error."""
    admin = connections["mariadb"].copy()
    with contextlib.closing(admin), admin.cursor() as cursor:
        cursor.execute("KILL %s", [backend("mariadb")])
    backend("mariadb")


@pytest.mark.usefixtures("mariadb")
@CLOSINGS
def test_killed_on_mariadb(close: Close) -> None:
    """There too, though its driver cannot tell that the session has ended: the server is asked."""
    before = backend("mariadb")

    def task() -> object:
        with pytest.raises(OperationalError):
            lose_mariadb()
        close("mariadb")
        return backend("mariadb")

    after = ImmediateExecutor().submit(task).result(0)
    assert after != before
    assert backend("mariadb") == after


@pytest.mark.usefixtures("mariadb")
def test_killed_on_mariadb_in_the_tasks_transaction() -> None:
    """Where a task's own `atomic` loses its session there, Django's own recovery works as well."""
    before = backend("mariadb")

    def task() -> object:
        with pytest.raises(OperationalError), transaction.atomic(using="mariadb"):
            lose_mariadb()
        return backend("mariadb")

    assert ImmediateExecutor().submit(task).result(0) != before
    assert connections["mariadb"].autocommit


@pytest.mark.usefixtures("mariadb")
@CLOSINGS
def test_an_error_on_mariadb_ends_no_transaction(close: Close) -> None:
    """After an error that is no lost session, a task cannot close the caller's connection there."""
    with transaction.atomic(using="mariadb"):
        Entry.objects.using("mariadb").create(name="of the caller")

        def task() -> None:
            with contextlib.suppress(DatabaseError), transaction.atomic(using="mariadb"):
                Entry.objects.using("mariadb").extra(where=["no_such_column"]).count()
            assert connections["mariadb"].errors_occurred
            close("mariadb")

        in_a_task(task)
        assert names("mariadb") == ["of the caller"]
    assert names("mariadb") == ["of the caller"]
