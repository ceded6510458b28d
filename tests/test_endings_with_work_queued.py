"""However a task ends, the one queued behind it on the same worker meets a connection in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from django_executors import ThreadPoolExecutor, all_connections

from .keeping import queued
from .observers import PostgresObserver
from .test_fresh_sessions import resets_are_on  # noqa: F401
from .test_release import ENDINGS, backend_pid, closed_generators, raises  # noqa: F401
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "conn_max_age", "resets_are_on")


def failed_query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM no_such_table")


def data_error() -> None:
    """Fail by a value: Django does not count this as an error of the connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def swallowed_error() -> None:
    with contextlib.suppress(DatabaseError):
        failed_query()


ALL_ENDINGS = {
    **ENDINGS,
    failed_query: DatabaseError,
    data_error: DatabaseError,
    swallowed_error: None,
}
CLEAN = {raises, data_error}
endings = pytest.mark.parametrize("ending", ALL_ENDINGS, ids=lambda ending: ending.__name__)


def writes() -> tuple[Any, ...]:
    """Report what a task may find amiss, and write a row."""
    connection.ensure_connection()
    state = (
        connection.in_atomic_block,
        connection.get_autocommit(),
        connection.needs_rollback,
        connection.savepoint_ids,
        connection.connection.info.transaction_status.name,
        connection.connection.info.pipeline_status.name,
    )
    with transaction.atomic():
        Entry.objects.create(name="of the next task")
    return state


IN_ORDER = (False, True, False, [], "IDLE", "OFF")


@endings
def test_the_task_behind(ending: Callable[[], object], postgres: PostgresObserver) -> None:
    """Its own outcome stays, what it did not commit is gone, and the tasks behind it succeed."""
    pool = ThreadPoolExecutor(1)
    rounds = 3
    ended, *others = zip(*[queued(pool, ending, writes, writes) for _ in range(rounds)], strict=True)
    for future in ended:
        error, expected = future.exception(10), ALL_ENDINGS[ending]
        assert error is None if expected is None else isinstance(error, expected)
    for future in [future for futures in others for future in futures]:
        assert future.result(10) == IN_ORDER
    assert all_connections() == ()
    assert not postgres.left()
    assert list(Entry.objects.values_list("name", flat=True)) == ["of the next task"] * 2 * rounds


@endings
def test_the_backend(ending: Callable[[], object]) -> None:
    """Only a clean end is followed by a task on the same backend: an exception alone is clean."""

    def task() -> object:
        pids.append(backend_pid())
        return ending()

    pids: list[int] = []
    ended, behind = queued(ThreadPoolExecutor(1), task, backend_pid)
    ended.exception(10)
    assert (behind.result(10) == pids[0]) is (ending in CLEAN)


def test_many_endings_on_many_workers(postgres: PostgresObserver) -> None:
    """Odd endings among ordinary tasks, on many workers, leave nothing, and harm no other task."""
    pool = ThreadPoolExecutor(8)
    tasks = [task for ending in ALL_ENDINGS for task in (ending, writes, writes, writes)] * 3
    futures = queued(pool, *tasks, workers=8)
    for task, future in zip(tasks, futures, strict=True):
        if task is writes:
            assert future.result(20) == IN_ORDER
        else:
            error, expected = future.exception(20), ALL_ENDINGS[task]
            assert error is None if expected is None else isinstance(error, expected)
    pool.shutdown()
    assert all_connections() == ()
    assert not postgres.left()
    names = set(Entry.objects.values_list("name", flat=True))
    assert names == {"of the next task"}
