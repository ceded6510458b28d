"""However a task ends, the next one on the same worker meets a connection in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.connections import sessions
from tests.projects.testapp.models import Entry
from tests.support.endings import ENDINGS, backend_pid, raises
from tests.support.kept import backend, queued, results

two_ages = pytest.mark.parametrize("conn_max_age", [0, 600], indirect=True, ids="CONN_MAX_AGE={}".format)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the server longer to answer than a busy machine takes."""
    monkeypatch.setattr(sessions, "RESET_TIMEOUT", 30.0)


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


@pytest.mark.parametrize("ending", ALL_ENDINGS, ids=lambda ending: ending.__name__)
def test_the_task_behind(ending: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome stays, what it did not commit is gone, and only a clean end's backend is kept."""

    def task() -> object:
        pids.append(backend_pid())
        return ending()

    for age in (0, 600):
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", age)
        pids: list[int] = []
        ended, behind, *others = queued(ThreadPoolExecutor(1), task, backend_pid, writes, writes)
        error, expected = ended.exception(20), ALL_ENDINGS[ending]
        assert error is None if expected is None else isinstance(error, expected)
        assert (behind.result(20) == pids[0]) is (ending in CLEAN)
        assert results(others) == [(False, True, False, [], "IDLE", "OFF")] * 2
        assert all_connections() == ()
        assert set(Entry.objects.values_list("name", flat=True)) == {"of the next task"}
        connection.close()


# Server-side cursors that outlive their task, and are closed by whoever drops the last reference.


Kept = list[Iterator[Any]]


@pytest.fixture
def rows() -> None:
    Entry.objects.bulk_create(Entry(name=str(number)) for number in range(10))
    connection.close()


def opens_a_cursor() -> Iterator[Any]:
    found = Entry.objects.order_by("pk").iterator(chunk_size=2)
    next(found)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("in_transaction", [False, True])
def test_closed_by_another_worker(in_transaction: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A task's cursor that another worker closes, whatever that one's connection does, harms nobody."""
    kept: Kept = []

    def leaves_one() -> int:
        kept[:] = [opens_a_cursor()]  # and closes the one that was there
        return 10

    def counts() -> int:
        if not in_transaction:
            return Entry.objects.count()
        with transaction.atomic():
            kept.clear()
            return Entry.objects.count()

    caplog.set_level(logging.CRITICAL, "django_executors")  # each is told of
    with ThreadPoolExecutor(4) as pool:
        tasks = [counts if number % 3 else leaves_one for number in range(400)]
        assert [future.result(60) for future in map(pool.submit, tasks)] == [10] * 400
        kept.clear()
        assert all_connections() == ()


@two_ages
@pytest.mark.usefixtures("rows", "conn_max_age")
def test_makes_its_connection_dirty(caplog: pytest.LogCaptureFixture) -> None:
    """Such a connection is closed and not used again, with one warning that names the task."""

    def leaves_one() -> object:
        kept.append(opens_a_cursor())
        return backend()

    kept: Kept = []
    first, second = results(queued(ThreadPoolExecutor(1), leaves_one, backend))
    assert first != second
    assert all_connections() == ()
    (record,) = caplog.records
    assert "leaves_one" in record.getMessage()
    assert "an open server-side cursor" in record.getMessage()


@two_ages
@pytest.mark.usefixtures("rows", "conn_max_age")
def test_one_that_is_closed_in_its_task(caplog: pytest.LogCaptureFixture) -> None:
    """A cursor that was read to its end, dropped or left by a `break` costs no connection."""

    def reads() -> object:
        assert len(list(Entry.objects.iterator(chunk_size=2))) == 10
        opens_a_cursor()
        for _ in Entry.objects.iterator(chunk_size=2):
            break
        return backend()

    assert len(set(results(queued(ThreadPoolExecutor(1), reads, reads, reads)))) == 1
    assert caplog.records == []


@pytest.mark.usefixtures("rows")
def test_used_by_the_thread_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may close a cursor, or a backend end a transaction, in the middle of the closing."""

    def close_after_use(self: Any) -> None:
        if self.connection is not None and not self.connection.closed:
            kept.clear()
            self.connection.rollback()
        close(self)

    kept: Kept = []
    close = DatabaseWrapper._close
    monkeypatch.setattr(DatabaseWrapper, "_close", close_after_use)
    pool = ThreadPoolExecutor(1)
    assert pool.submit(lambda: kept.append(opens_a_cursor())).result(20) is None
    assert all_connections() == ()


# SQLite in memory, which Django never closes: a worker's database lives as long as the worker.


@pytest.fixture(params=[0, 1e-9, 60], ids="CONN_MAX_AGE={}".format)
def pool(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadPoolExecutor]:
    """A pool of one worker, and an alias `memory`, whose table `written` has one row."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": request.param}
    monkeypatch.setitem(connections.settings, "memory", entry)
    monkeypatch.setattr(sessions, "BYPASS_WINDOW", 0)  # it is asked whether it is alive
    with ThreadPoolExecutor(1, conn_max_idle=1e-9 if request.param else 0.0) as pool:
        pool.submit(write).result(20)
        yield pool
    assert all_connections() == ()


def write() -> None:
    with connections["memory"].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (number int)")
        cursor.execute("INSERT INTO written VALUES (1)")


def count() -> int:
    with connections["memory"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM written")
        number: int = cursor.fetchone()[0]
        return number


def test_a_database_in_memory(pool: ThreadPoolExecutor) -> None:
    """What a task wrote is there for those after it, queued or not; no age and no idleness ends it."""
    assert results(queued(pool, count, write, count, write, count)) == [1, None, 2, None, 3]
    assert pool.submit(count).result(20) == 3


@pytest.mark.slow
def test_its_worker_sleeps(pool: ThreadPoolExecutor) -> None:
    """A worker that cannot let go of it waits without spending processor time."""
    before = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - before < 0.25
