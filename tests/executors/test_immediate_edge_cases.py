"""A task in its caller's thread, when the server has ended the connection."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from django_executors import ImmediateExecutor, ThreadPoolExecutor, release_connections
from django_executors.lifecycle import borrowing
from django_executors.lifecycle.borrowing import callers_connections
from tests.projects.testapp.models import Entry
from tests.support.endings import backend_pid
from tests.support.in_callers_thread import CLOSINGS, Close, in_a_task, names
from tests.support.kept import backend
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python


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


# What a task in its caller's thread borrows goes back to the caller, whatever happens.


FORKED = """
import multiprocessing, os
from django.db import connection, connections
from django_executors import ImmediateExecutor
from tests.projects.testapp.models import Entry

def ask(answers, number):
    with connection.cursor() as cursor:
        found = set()
        for _ in range(200):
            cursor.execute("SELECT %s, pg_backend_pid()", [number])
            found.add(cursor.fetchone())
    answers.put((number, sorted(found)))

def task():
    connections.close_all()  # as one does before a fork
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=ask, args=(answers, number)) for number in (1, 2)]
    for child in children:
        child.start()
    found = [answers.get(timeout=20) for _ in children]
    for child in children:
        child.join(20)
    return found

Entry.objects.count()
found = ImmediateExecutor().submit(task).result()
pids = set()
for number, answers in found:
    ((answer, pid),) = answers
    assert answer == number, found
    pids.add(pid)
assert len(pids) == 2, found
Entry.objects.count()
"""


def test_a_fork_in_a_task_shares_no_socket() -> None:
    """The task could not close its caller's connection: the children do not use it."""
    done = run_python(FORKED, settings="tests.settings")
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at that step of the code that lends, or nowhere if it has fewer."""
    before, steps = sys.gettrace(), itertools.count(1)

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != borrowing.__file__:
            return None
        if next(steps) == step:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_an_interruption_at_any_moment_gives_it_back() -> None:
    """Afterwards the caller can close its connection, wherever Ctrl-C came."""
    for step in range(1, 1000):
        connection.ensure_connection()
        interrupted = True
        with contextlib.suppress(KeyboardInterrupt), interrupted_at(step):
            with callers_connections():
                pass
            interrupted = False
        connection.close()
        assert connection.connection is None, step
        if not interrupted:
            break
    assert 5 < step < 1000


def test_release_connections_in_a_task_leaves_a_caller_without_autocommit_alone() -> None:
    """Its connection is dirty by the rules for workers, and is not the task's."""

    def caller() -> bool:
        connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.rollback()
        mine = connection.connection
        ImmediateExecutor().submit(release_connections).result()
        return connection.connection is mine

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(caller).result(10)


def test_closing_works_after_a_task_as_before() -> None:
    """The mark of a task does not outlive it."""
    connection.ensure_connection()
    ImmediateExecutor().submit(connections.close_all).result()
    assert connection.connection is not None
    connections.close_all()
    assert connection.connection is None
