"""A pool of the project's own, which wraps each function so that nobody forgets to close.

A done-callback is outside the wrapper. The class goes, or inherits from ours.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

import django_executors
from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver


class ClosingExecutor(concurrent.futures.ThreadPoolExecutor):
    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        def task() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                connection.close()

        return super().submit(task)


class CountingExecutor(ThreadPoolExecutor):
    """Does more than close connections."""

    submitted = 0

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


def count_and_log(pool: concurrent.futures.ThreadPoolExecutor) -> int:
    """Run a task with a callback that uses the ORM, and wait for both."""
    go_on, done = threading.Event(), threading.Event()

    def count() -> int:
        assert go_on.wait(10)
        return Entry.objects.count()

    def log(future: concurrent.futures.Future[int]) -> None:
        Entry.objects.create(name=f"{future.result()} counted")
        done.set()

    future = pool.submit(count)
    future.add_done_callback(log)
    go_on.set()
    assert done.wait(10)
    return int(future.result(10))


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("leaked_before")
def test_before(postgres: PostgresObserver) -> None:
    """The task's connection is closed, and the callback opens another one that stays."""
    assert count_and_log(ClosingExecutor(1)) == 0
    assert len(postgres.settled(1)) == 1


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("executor", [django_executors.ThreadPoolExecutor, CountingExecutor])
def test_class_of_the_docs(
    executor: type[concurrent.futures.ThreadPoolExecutor], postgres: PostgresObserver
) -> None:
    """Nothing is left, with our class in its place or below it."""
    assert count_and_log(executor(1)) == 0
    assert not postgres.left()
    assert all_connections() == ()
