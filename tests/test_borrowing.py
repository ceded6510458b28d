"""What a task in its caller's thread borrows goes back to the caller, whatever happens."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from django.db import connection, connections

from django_executors import ImmediateExecutor, ThreadPoolExecutor, release_connections
from django_executors.lifecycle.borrowing import callers_connections

from .subprocesses import run_python

FORKED = """
import multiprocessing, os
from django.db import connection, connections
from django_executors import ImmediateExecutor
from tests.testapp.models import Entry

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
def interrupted_after(microseconds: int) -> Iterator[None]:
    """Raise KeyboardInterrupt somewhere in the block, or nowhere."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interruption_at_any_moment_gives_it_back() -> None:
    """Afterwards the caller can close its connection, wherever Ctrl-C came."""
    deadline = time.monotonic() + 1.0
    microseconds = 1
    while time.monotonic() < deadline:
        connection.ensure_connection()
        with contextlib.suppress(KeyboardInterrupt), interrupted_after(microseconds % 120 + 1):
            for _ in range(20):
                with callers_connections():
                    pass
        microseconds += 7
        connection.close()
        assert connection.connection is None


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
