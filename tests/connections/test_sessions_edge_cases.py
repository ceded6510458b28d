"""Whatever tasks did to their sessions, and however they ended: the next one's is like a new one."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.lifecycle import sessions
from tests.connections.test_sessions import (
    one_after_the_other,
)
from tests.projects.testapp.models import Entry
from tests.support.endings import ENDINGS, backend_pid, raises
from tests.support.kept import backend, queued, results
from tests.support.observers import PostgresObserver
from tests.support.session_state import session_state
from tests.support.session_steps import ENDINGS as LAST_STEPS
from tests.support.session_steps import STEPS, Step, kept_alive, open_iterator, returns
from tests.support.waiting import wait_until


class Task:
    """Some steps and an ending. A step that the server refuses does not end it."""

    def __init__(self, steps: list[Step], ending: Step) -> None:
        self.steps = steps
        self.ending = ending
        self.pid: int | None = None

    def __repr__(self) -> str:
        return f"{[step.__name__ for step in self.steps]} {self.ending.__name__}"

    def __call__(self) -> None:
        for step in self.steps:
            try:
                step()
            except (DatabaseError, psycopg.Error, transaction.TransactionManagementError):
                break
        if connection.connection is not None:
            self.pid = connection.connection.info.backend_pid
        self.ending()


TASKS = st.lists(
    st.builds(Task, st.lists(st.sampled_from(STEPS), max_size=4), st.sampled_from(LAST_STEPS)),
    min_size=1,
    max_size=3,
)


def look() -> tuple[dict[str, Any], int]:
    state = session_state()
    return state, connection.connection.info.backend_pid


def check(tasks: list[Task]) -> bool:
    """Run these tasks and then one that looks, on one worker; tell if it got a used backend."""
    try:
        new, _ = look()
    finally:
        connection.close()
        del connections["default"]
    ready = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count)  # so that the first of them may begin with a kept connection
        pool.submit(ready.wait, 10)
        futures = [pool.submit(task) for task in tasks]
        looks = pool.submit(look)
        ready.set()
        for future in futures:
            future.exception(20)
        seen, pid = looks.result(20)
    kept_alive.clear()
    assert {name: value for name, value in seen.items() if value != new[name]} == {}
    return pid in [task.pid for task in tasks]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_each_step(step: Step) -> None:
    """Each of the steps by itself leaves nothing to the next task."""
    check([Task([step], returns)])


def test_any_steps_and_endings() -> None:
    """A session after any steps and endings equals a new one's, on the same backend in many cases."""
    reused: list[bool] = []

    @settings(max_examples=80, derandomize=True, deadline=None, database=None)
    @given(TASKS)
    def run(tasks: list[Task]) -> None:
        found = check(tasks)
        if not any(open_iterator in task.steps for task in tasks):  # which is dirty
            reused.append(found)

    run()
    assert not sessions._given_up
    assert sum(reused) > len(reused) / 4, reused


def test_start_up_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the start-up packet says, a role among it, is in force again after any step."""
    options = {"options": "-c role=pg_read_all_data -c work_mem=234kB -c app.tenant=nobody"}
    everything = connection.settings_dict["OPTIONS"] | options
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", everything)
    sql = "SELECT current_user, current_setting('work_mem'), current_setting('app.tenant')"

    def leaves() -> tuple[Any, int]:
        with connection.cursor() as cursor:
            found = cursor.execute(sql).fetchall()
            cursor.execute("SET ROLE NONE; SET work_mem = '123kB'; SET app.tenant = 'acme'")
            cursor.execute("SET SESSION AUTHORIZATION pg_monitor")
        return found, connection.connection.info.backend_pid

    (first, pid), (second, next_pid) = one_after_the_other(leaves, leaves)
    assert first == second == [("pg_read_all_data", "234kB", "nobody")]
    assert next_pid == pid


# However a task ends, the one queued behind it on the same worker meets a connection in order.


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
@pytest.mark.usefixtures("conn_max_age")
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
@pytest.mark.usefixtures("conn_max_age")
def test_the_backend(ending: Callable[[], object]) -> None:
    """Only a clean end is followed by a task on the same backend: an exception alone is clean."""

    def task() -> object:
        pids.append(backend_pid())
        return ending()

    pids: list[int] = []
    ended, behind = queued(ThreadPoolExecutor(1), task, backend_pid)
    ended.exception(10)
    assert (behind.result(10) == pids[0]) is (ending in CLEAN)


@pytest.mark.usefixtures("conn_max_age")
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


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.usefixtures("rows")
def test_closed_by_another_worker(
    in_transaction: bool, conn_max_age: int | None, postgres: PostgresObserver
) -> None:
    """A task's cursor that another worker closes, whatever that one's connection does, harms nobody."""
    kept: Kept = []
    tasks = 3000 if conn_max_age == 0 and not in_transaction else 300

    def leaves_one() -> int:
        kept[:] = [opens_a_cursor()]  # and closes the one that was there
        return 10

    def counts() -> int:
        if not in_transaction:
            return Entry.objects.count()
        with transaction.atomic():
            kept.clear()
            return Entry.objects.count()

    logging.disable()  # each is told of
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(counts if number % 3 else leaves_one) for number in range(tasks)]
        assert [future.result(60) for future in futures] == [10] * tasks
        kept.clear()
        assert all_connections() == ()
    logging.disable(logging.NOTSET)
    assert not postgres.left()


@pytest.mark.usefixtures("rows", "conn_max_age")
@pytest.mark.parametrize("tasks_behind", [0, 1])
def test_makes_its_connection_dirty(tasks_behind: int, caplog: pytest.LogCaptureFixture) -> None:
    """Such a connection is closed and not used again, with one warning that names the task."""

    def leaves_one() -> object:
        kept.append(opens_a_cursor())
        return backend()

    kept: Kept = []
    with ThreadPoolExecutor(1) as pool:
        used = results(queued(pool, leaves_one, *[backend] * tasks_behind))
        assert len(set(used)) == 1 + tasks_behind
        assert all_connections() == ()
    (record,) = caplog.records
    assert "leaves_one" in record.getMessage()
    assert "an open server-side cursor" in record.getMessage()


@pytest.mark.usefixtures("rows", "conn_max_age")
def test_one_that_is_closed_in_its_task(caplog: pytest.LogCaptureFixture) -> None:
    """A cursor that was read to its end, dropped or left by a `break` costs no connection."""

    def reads() -> object:
        assert len(list(Entry.objects.iterator(chunk_size=2))) == 10
        opens_a_cursor()
        for _ in Entry.objects.iterator(chunk_size=2):
            break
        return backend()

    with ThreadPoolExecutor(1) as pool:
        assert len(set(results(queued(pool, reads, reads, reads)))) == 1
    assert caplog.records == []


@pytest.mark.usefixtures("rows", "conn_max_age")
def test_used_by_the_thread_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may close a cursor, or a backend end a transaction, in the middle of the closing."""

    def close_after_use(self: Any) -> None:
        if self.connection is not None and not self.connection.closed:
            kept.clear()
            self.connection.rollback()
        close(self)

    def leaves_one() -> int:
        kept.append(opens_a_cursor())
        return 1

    kept: Kept = []
    close = DatabaseWrapper._close
    monkeypatch.setattr(DatabaseWrapper, "_close", close_after_use)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(leaves_one).result(10) == 1
        assert all_connections() == ()


# SQLite in memory, which Django never closes: a worker's database lives as long as the worker.


#: Above BYPASS_WINDOW, so that a kept connection is asked whether it is alive.
PAUSE = 0.6


@pytest.fixture(params=[0, 0.3, 60], ids=lambda age: f"CONN_MAX_AGE={age}")
def pool(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadPoolExecutor]:
    """A pool of one worker, and an alias `memory`."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": request.param}
    monkeypatch.setitem(connections.settings, "memory", entry)
    idle = 0.1 if request.param else 0.0
    with ThreadPoolExecutor(1, conn_max_idle=idle) as pool:
        pool.submit(write).result(10)
        yield pool
    assert wait_until(all_connections, lambda found: not found) == ()


def write() -> None:
    with connections["memory"].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (number int)")
        cursor.execute("INSERT INTO written VALUES (1)")


def count() -> int:
    with connections["memory"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM written")
        number: int = cursor.fetchone()[0]
        return number


def wait_for_a_moment() -> None:
    wait_until(lambda: False, within=PAUSE)


def test_queued_tasks_see_it(pool: ThreadPoolExecutor) -> None:
    """What one task wrote is there for the tasks after it, queued or not."""
    assert results(queued(pool, count, write, count, write, count)) == [1, None, 2, None, 3]
    assert pool.submit(count).result(10) == 3


def test_it_outlives_max_age(pool: ThreadPoolExecutor) -> None:
    """Neither its age nor a pause ends it, between two tasks or inside one."""

    def late() -> int:
        wait_for_a_moment()
        return count()

    tasks: list[Callable[[], Any]] = [write, late, write, late]
    assert results(queued(pool, *tasks)) == [None, 2, None, 3]
    wait_for_a_moment()
    assert pool.submit(count).result(10) == 3


def test_the_worker_sleeps(pool: ThreadPoolExecutor) -> None:
    """A worker that cannot let go of it waits without spending processor time."""
    pool.submit(count).result(10)
    before = time.process_time()
    wait_for_a_moment()
    assert time.process_time() - before < PAUSE / 2
