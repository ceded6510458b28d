"""Tasks in their callers' threads, in workers and on a lent connection, and initializers there."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_executors import ImmediateExecutor, ThreadPoolExecutor, all_connections, release_connections
from django_executors.testing import run_inline

from .in_callers_thread import (
    close_all,
    close_old,
    close_the_connection,
    fail,
    in_a_callback,
    in_a_task,
    names,
)
from .observers import PostgresObserver
from .test_release import backend_pid
from .testapp.models import Entry


def test_in_a_task_of_a_real_pool(postgres: PostgresObserver) -> None:
    """In a worker, tasks use the worker's connection and cannot close it; the worker does at its end."""

    def task() -> tuple[list[int], list[str]]:
        pids = []
        with transaction.atomic():
            Entry.objects.create(name="of the worker")
            for close in (close_the_connection, close_all, close_old):
                pids.append(ImmediateExecutor().submit(backend_pid).result(0))
                in_a_task(close, "default")
                in_a_callback(close, "default")
                pids.append(backend_pid())
            seen = ImmediateExecutor().submit(names).result(0)
        in_a_task(release_connections)
        return [*pids, backend_pid()], seen

    pids, seen = ThreadPoolExecutor(1).submit(task).result(10)
    assert len(set(pids)) == 1
    assert seen == names() == ["of the worker"]
    connection.close()
    assert all_connections() == ()
    assert not postgres.left()


def test_two_threads_on_one_lent_connection(lent: Any, postgres: PostgresObserver) -> None:
    """While a task of either thread runs, neither can close it; when both have ended, it can be."""
    both_in, first_out = threading.Barrier(2), threading.Event()
    lent.ensure_connection()
    driver = lent.connection

    def task(is_first: bool) -> bool:
        both_in.wait(10)
        if not is_first:
            assert first_out.wait(10)
        close_all("default")
        return lent.connection is driver

    def borrow(is_first: bool) -> bool:
        connections["default"] = lent
        stayed = ImmediateExecutor().submit(task, is_first).result(0)
        if is_first:
            first_out.set()
        return stayed

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert list(threads.map(borrow, [True, False], timeout=20)) == [True, True]
    assert postgres.backends()
    lent.close()
    assert lent.connection is None
    assert not postgres.left()


# Initializers


def test_initializers_run_once_in_each_thread() -> None:
    """Under `run_inline` a pool's initializer runs before its first task, in each submitting thread."""
    ran: list[int] = []

    def submit_twice(pool: ThreadPoolExecutor) -> None:
        for _ in range(2):
            assert pool.submit(abs, -1).result(0) == 1

    with run_inline(), ThreadPoolExecutor(1, initializer=ran.append, initargs=(5,)) as pool:
        assert ran == []
        submit_twice(pool)
        thread = threading.Thread(target=submit_twice, args=[pool])
        thread.start()
        thread.join(10)
    assert ran == [5, 5]


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit])
def test_an_initializer_that_raises(kind: type[BaseException]) -> None:
    """Under `run_inline` its error is the cause of the future's BrokenThreadPool; no task has run."""
    ran: list[int] = []
    error = kind("of the initializer")
    with run_inline(), ThreadPoolExecutor(1, initializer=fail, initargs=(error,)) as pool:
        future = pool.submit(ran.append, 1)
        with pytest.raises(BrokenThreadPool, match="initializer failed") as caught:
            future.result(0)
    assert caught.value.__cause__ is error
    assert ran == []


def test_ctrl_c_in_an_initializer() -> None:
    """Ctrl-C in an initializer is raised where the task was submitted, as Ctrl-C in a task is."""
    pool = ThreadPoolExecutor(1, initializer=fail, initargs=(KeyboardInterrupt(),))
    with run_inline(), pytest.raises(KeyboardInterrupt):
        pool.submit(abs, -1)
