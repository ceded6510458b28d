"""A task lets go before its future resolves, however it ended: counted on the server, collector off."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.test import TestCase

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from tests.projects.testapp.models import Entry
from tests.support.endings import (
    ENDINGS,
    backend_pid,
    open_pipeline,
)
from tests.support.gates import Gate
from tests.support.kept import CountedResets, backend, registered, results
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.running_cases import run_case
from tests.support.waiting import wait_until

WORKERS = 8


def query_together(barrier: threading.Barrier, *aliases: str) -> None:
    """Query, then wait until every worker has: all of them hold a connection at once."""
    for alias in aliases:
        Entry.objects.using(alias).count()
    barrier.wait(10)


@pytest.mark.parametrize("alias", ["default", "sqlite", "mariadb"])
@pytest.mark.usefixtures("conn_max_age")
def test_full_house(alias: str, request: pytest.FixtureRequest, postgres: PostgresObserver) -> None:
    """N tasks on N workers hold N connections; when every result is there, none is left."""
    if alias == "mariadb":
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")
    held: list[int] = []
    barrier = threading.Barrier(WORKERS, action=lambda: held.append(len(all_connections())))
    pool = ThreadPoolExecutor(WORKERS)
    for future in [pool.submit(query_together, barrier, alias) for _ in range(WORKERS)]:
        future.result(10)
    assert held == [WORKERS]
    assert all_connections() == ()
    assert not postgres.left()
    if alias == "mariadb":
        assert not mariadb.left()


@pytest.mark.usefixtures("conn_max_age")
def test_two_aliases(postgres: PostgresObserver) -> None:
    """Every alias that a task opened is closed."""
    barrier = threading.Barrier(WORKERS)
    pool = ThreadPoolExecutor(WORKERS)
    for future in [pool.submit(query_together, barrier, "default", "other") for _ in range(WORKERS)]:
        future.result(10)
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


@pytest.mark.usefixtures("conn_max_age")
def test_alias_that_leaves_the_settings(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """An alias that is gone from the settings when the task ends is closed like the others."""
    monkeypatch.setitem(connections.settings, "passing", connections.settings["other"].copy())

    def task() -> None:
        Entry.objects.using("passing").count()
        assert postgres.backends("other")
        del connections.settings["passing"]

    ThreadPoolExecutor(1).submit(task).result(10)
    assert all_connections() == ()
    assert not postgres.left("other")


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.usefixtures("conn_max_age")
def test_endings(ending: Callable[[], object], postgres: PostgresObserver) -> None:
    """However a task ends, nothing is left, its outcome stays, and the worker serves the next one."""
    pool = ThreadPoolExecutor(1)
    for _ in range(3):
        future = pool.submit(ending)
        error = future.exception(10)
        expected = ENDINGS[ending]
        assert error is None if expected is None else isinstance(error, expected)
        assert all_connections() == ()
        assert not postgres.left()
        assert pool.submit(Entry.objects.create, name="of the next task").result(10).pk
        assert not Entry.objects.filter(name="not committed").exists()
        connection.close()
        assert all_connections() == ()
    assert Entry.objects.filter(name="of the next task").count() == 3


@pytest.mark.usefixtures("conn_max_age")
def test_cancelled_before_it_starts(postgres: PostgresObserver) -> None:
    """A cancelled task stays cancelled and opens nothing; the one before it lets go."""
    started, go_on = threading.Event(), threading.Event()

    def first() -> None:
        Entry.objects.count()
        started.set()
        go_on.wait(10)

    pool = ThreadPoolExecutor(1)
    running, cancelled = pool.submit(first), pool.submit(Entry.objects.count)
    assert started.wait(10)
    assert cancelled.cancel()
    go_on.set()
    running.result(10)
    assert cancelled.cancelled()
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_caller_timed_out(postgres: PostgresObserver) -> None:
    """A task whose caller has given up lets go all the same."""
    go_on = threading.Event()

    def task() -> None:
        Entry.objects.count()
        go_on.wait(10)

    future = ThreadPoolExecutor(1).submit(task)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)
    go_on.set()
    future.result(10)
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_nothing_of_a_pipeline_survives() -> None:
    """The next task has a connection in its ordinary state."""
    pool = ThreadPoolExecutor(1)
    pool.submit(open_pipeline).result(10)

    def status() -> psycopg.pq.PipelineStatus:
        connection.ensure_connection()
        found: psycopg.pq.PipelineStatus = connection.connection.info.pipeline_status
        return found

    assert pool.submit(status).result(10) == psycopg.pq.PipelineStatus.OFF


# Callbacks and initializers let go in a worker; in the caller's thread they are the caller's.


fresh_each_task = pytest.mark.parametrize("conn_max_age", [0], indirect=True, ids=["CONN_MAX_AGE=0"])


def count(_: object = None) -> None:
    Entry.objects.count()


def go_when(event: threading.Event) -> None:
    assert event.wait(10)


def only(pid: int, postgres: PostgresObserver) -> bool:
    return wait_until(postgres.backends, lambda pids: pids == {pid}) == {pid}


def assert_idle_pool_holds_nothing(postgres: PostgresObserver) -> None:
    assert wait_until(all_connections, lambda found: not found) == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_callback_in_the_worker(postgres: PostgresObserver) -> None:
    """A done-callback that uses the ORM in the worker leaves nothing once the pool is idle."""
    before_end = threading.Event()
    used_in: list[threading.Thread] = []
    held: list[int] = []
    done = threading.Event()

    def callback(_: object) -> None:
        count()
        used_in.append(threading.current_thread())
        held.append(len(all_connections()))
        done.set()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(go_when, before_end)
    future.add_done_callback(callback)
    before_end.set()
    assert done.wait(10)
    assert used_in != [threading.current_thread()]
    assert held == [1]
    assert_idle_pool_holds_nothing(postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_callback_that_leaves_a_transaction_open(postgres: PostgresObserver) -> None:
    """What a callback left uncommitted is rolled back, whoever comes next."""
    before_end = threading.Event()

    def callback(_: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
        Entry.objects.create(name="not committed")

    pool = ThreadPoolExecutor(1)
    future = pool.submit(go_when, before_end)
    future.add_done_callback(callback)
    before_end.set()
    assert pool.submit(Entry.objects.count).result(10) == 0
    assert_idle_pool_holds_nothing(postgres)


@fresh_each_task
@pytest.mark.usefixtures("conn_max_age")
def test_next_task_meets_nothing_of_a_callback(postgres: PostgresObserver) -> None:
    """A task that was queued while a callback ran has a session and a wrapper of its own."""
    before_end = threading.Event()
    of_callback: list[int | None] = []

    def callback(_: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET application_name = 'of the callback'")
        connection.execute_wrappers.append(lambda execute, *args: execute(*args))
        of_callback.extend(info.backend_pid for info in all_connections())

    def session() -> tuple[str, int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('application_name'), pg_backend_pid()")
            name, pid = cursor.fetchone()
        return name, pid, len(connection.execute_wrappers)

    pool = ThreadPoolExecutor(1)
    first = pool.submit(go_when, before_end)
    first.add_done_callback(callback)
    queued = pool.submit(session)
    before_end.set()
    name, _, hooks = queued.result(10)
    assert (name, hooks) == ("", 0)
    assert len(of_callback) == 1
    assert_idle_pool_holds_nothing(postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_callback_that_raises(postgres: PostgresObserver, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises after it used the ORM leaves nothing, and the standard class logs it."""
    before_end = threading.Event()

    def callback(_: object) -> None:
        count()
        raise LookupError("of the callback")

    pool = ThreadPoolExecutor(1)
    future = pool.submit(go_when, before_end)
    future.add_done_callback(callback)
    before_end.set()
    assert future.result(10) is None
    assert wait_until(lambda: [record.name for record in caplog.records]) == ["concurrent.futures"]
    assert_idle_pool_holds_nothing(postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_late_callback_runs_in_the_caller(postgres: PostgresObserver) -> None:
    """A callback added after the end runs in the caller's thread, on the caller's connection."""
    connection.ensure_connection()
    mine = connection.connection
    future = ThreadPoolExecutor(1).submit(Entry.objects.count)
    assert future.result(10) == 0
    used_in: list[threading.Thread] = []

    def callback(_: object) -> None:
        count()
        used_in.append(threading.current_thread())

    future.add_done_callback(callback)
    assert used_in == [threading.current_thread()]
    assert connection.connection is mine
    assert only(mine.info.backend_pid, postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_late_callback_inside_atomic(postgres: PostgresObserver) -> None:
    """Inside the caller's `atomic` such a callback is part of that transaction, which goes on."""
    pool = ThreadPoolExecutor(1)

    def callback(_: object) -> None:
        Entry.objects.create(name="of the callback")

    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        mine = connection.connection
        future = pool.submit(Entry.objects.count)
        assert future.result(10) == 0
        future.add_done_callback(callback)
        assert connection.connection is mine
        assert Entry.objects.count() == 2
        transaction.set_rollback(True)
    assert connection.connection is mine
    assert Entry.objects.count() == 0
    connection.close()
    assert_idle_pool_holds_nothing(postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_callback_of_a_cancelled_future(postgres: PostgresObserver) -> None:
    """`cancel()` runs the callback in the caller's thread, and leaves the caller's connection alone."""
    go_on = threading.Event()
    pool = ThreadPoolExecutor(1)
    running, queued = pool.submit(go_when, go_on), pool.submit(count)
    queued.add_done_callback(count)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        mine = connection.connection
        assert queued.cancel()
        assert connection.connection is mine
    go_on.set()
    running.result(10)
    assert Entry.objects.get().name == "of the caller"
    assert only(mine.info.backend_pid, postgres)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.usefixtures("conn_max_age")
def test_initializer(workers: int, postgres: PostgresObserver) -> None:
    """An initializer that uses the ORM leaves nothing once its worker waits."""
    held: list[int] = []
    all_in = threading.Barrier(workers, action=lambda: held.append(len(all_connections())))

    def initializer(name: str) -> None:
        Entry.objects.create(name=name)
        all_in.wait(10)

    pool = ThreadPoolExecutor(workers, "", initializer, ("of the initializer",))
    for future in [pool.submit(int) for _ in range(workers)]:
        assert future.result(10) == 0
    assert held == [workers]
    assert_idle_pool_holds_nothing(postgres)
    assert Entry.objects.filter(name="of the initializer").count() == workers


@pytest.mark.usefixtures("conn_max_age")
def test_worker_that_only_initializes(postgres: PostgresObserver) -> None:
    """A worker to which no task ever came lets go; one that has a task may hold it until that ends."""
    go_on, both = threading.Event(), threading.Barrier(2)
    first_has_task = threading.Event()

    def initializer() -> None:
        count()
        both.wait(10)

    def task() -> None:
        if not first_has_task.is_set():
            first_has_task.set()
            go_on.wait(10)

    pool = ThreadPoolExecutor(2, initializer=initializer)
    futures = [pool.submit(task), pool.submit(task)]
    assert wait_until(lambda: any(future.done() for future in futures), within=10)
    assert len(wait_until(all_connections, lambda found: len(found) < 2)) < 2
    go_on.set()
    concurrent.futures.wait(futures, 10)
    assert_idle_pool_holds_nothing(postgres)


@fresh_each_task
@pytest.mark.usefixtures("conn_max_age")
def test_first_task_meets_nothing_of_the_initializer(postgres: PostgresObserver) -> None:
    """The first task has a session of its own."""

    def initializer() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET application_name = 'of the initializer'")

    def application_name() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('application_name')")
            name: str = cursor.fetchone()[0]
            return name

    pool = ThreadPoolExecutor(1, initializer=initializer)
    assert pool.submit(application_name).result(10) == ""
    assert_idle_pool_holds_nothing(postgres)


@pytest.mark.usefixtures("conn_max_age")
def test_initializer_that_raises(postgres: PostgresObserver, caplog: pytest.LogCaptureFixture) -> None:
    """An initializer that queries and raises breaks the pool, as usual, and leaves nothing."""
    held: list[int] = []
    submitted = threading.Event()

    def initializer() -> None:
        count()
        held.append(len(all_connections()))
        submitted.wait(10)
        raise LookupError("of the initializer")

    pool = ThreadPoolExecutor(1, initializer=initializer)
    futures = [pool.submit(count), pool.submit(count)]
    submitted.set()
    for future in futures:
        with pytest.raises(BrokenThreadPool):
            future.result(10)
    with pytest.raises(BrokenThreadPool):
        pool.submit(count)
    assert held == [1]
    assert_idle_pool_holds_nothing(postgres)
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


@pytest.mark.usefixtures("conn_max_age")
def test_initializer_that_raises_after_a_shutdown() -> None:
    """The other workers end all the same."""
    begins, task = Gate(), Gate()
    workers: list[threading.Thread] = []

    def initializer() -> None:
        workers.append(threading.current_thread())
        if len(workers) == 2:
            begins()
            raise LookupError("of the second")

    pool = ThreadPoolExecutor(2, initializer=initializer)
    busy = pool.submit(task)
    task.wait_for()
    pool.submit(int)
    begins.wait_for()
    pool.shutdown(wait=False)
    begins.open()
    workers[1].join(10)
    task.open()
    busy.result(10)
    workers[0].join(10)
    assert not any(worker.is_alive() for worker in workers)


# With `conn_max_idle`, an idle worker keeps its connection for a while, and closes it by itself.


WORKERS = 8
IDLE = 0.3
#: More than BYPASS_WINDOW: the server is asked whether a connection is alive.
LONG = 0.7


def pause(seconds: float) -> None:
    wait_until(lambda: False, within=seconds)


def closed_after(postgres: PostgresObserver) -> float:
    """Wait until the server has no client left, and return the seconds that it took."""
    begin = time.monotonic()
    assert not postgres.left()
    return time.monotonic() - begin


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    def set_age(age: float | None) -> None:
        for alias in connections:
            if alias != "pooled":
                monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", age)

    return set_age


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("seconds", [0.0, 0.05, LONG])
def test_one_task_at_a_time(seconds: float, postgres: PostgresObserver) -> None:
    """Tasks that come one by one, with pauses between them, share one backend."""
    pool = ThreadPoolExecutor(1, conn_max_idle=30)
    used = set()
    for _ in range(3):
        used.add(pool.submit(backend).result(10))
        assert postgres.backends() == used
        pause(seconds)
    assert len(used) == 1
    pool.shutdown()
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_the_worker_closes_it(postgres: PostgresObserver) -> None:
    """It is closed after that time although no task comes, by the worker, without an extra thread."""
    pool = ThreadPoolExecutor(WORKERS, conn_max_idle=IDLE)
    barrier = threading.Barrier(WORKERS)

    def task() -> str:
        Entry.objects.count()
        barrier.wait(10)
        return threading.current_thread().name

    for _ in range(2):
        workers = set(results([pool.submit(task) for _ in range(WORKERS)]))
        assert len(postgres.backends()) == WORKERS
        assert {one.thread_name for one in all_connections()} == workers
        running = {thread.name for thread in threading.enumerate()}
        assert closed_after(postgres) > IDLE / 2
        assert all_connections() == ()
        assert {thread.name for thread in threading.enumerate()} <= running
    pool.shutdown()


def test_not_beyond_max_age(age: Callable[[float | None], None], postgres: PostgresObserver) -> None:
    """A worker that may idle longer closes at the connection's max age, without a task."""
    age(1)
    pool = ThreadPoolExecutor(1, conn_max_idle=30)
    pool.submit(Entry.objects.count).result(10)
    assert closed_after(postgres) > 0.5
    assert all_connections() == ()
    pool.shutdown()


def test_tasks_that_make_no_query(
    age: Callable[[float | None], None], postgres: PostgresObserver
) -> None:
    """Tasks that make no query do not prolong it, whether they are queued or come one by one."""
    age(IDLE)
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    for ahead in (1, 2):
        pool.submit(Entry.objects.count).result(10)
        queued = [pool.submit(int) for _ in range(ahead)]
        stop = time.monotonic() + 3 * IDLE
        while time.monotonic() < stop:
            queued.append(pool.submit(pause, IDLE / 10))
            queued.pop(0).result(10)
        assert all_connections() == ()
        assert not postgres.left()
        results(queued)
    pool.shutdown()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("end", ["shutdown", "shutdown without waiting", "forgotten"])
def test_the_pools_end(end: str, postgres: PostgresObserver) -> None:
    """A pool that is shut down or forgotten lets go at once."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(2, conn_max_idle=30)
    assert pool is not None
    barrier = threading.Barrier(2)

    def task() -> None:
        Entry.objects.count()
        barrier.wait(10)

    results([pool.submit(task) for _ in range(2)])
    assert len(postgres.backends()) == 2
    if end != "forgotten":
        pool.shutdown(wait=end == "shutdown")
    pool = None
    assert not postgres.left()
    assert all_connections() == ()


def test_the_session_is_fresh_while_idle(postgres: PostgresObserver) -> None:
    """What the last task locked, made and listened to is gone while its worker idles."""

    def task() -> object:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(77)")
            cursor.execute("CREATE TEMPORARY TABLE left_over (number int)")
            cursor.execute("SET application_name = 'of the task'")
        return backend()

    def seen() -> set[Any]:
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77"
        names = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'of the task'"
        return {postgres.execute(sql)[0][0] for sql in (locks, names)}

    pool = ThreadPoolExecutor(1, conn_max_idle=30)
    used = pool.submit(task).result(10)
    assert wait_until(seen, lambda counts: counts == {0}) == {0}
    assert postgres.backends() == {used}
    assert pool.submit(task).result(10) == used
    pool.shutdown()


@pytest.mark.usefixtures("conn_max_age")
def test_two_aliases_conn_max_idle(postgres: PostgresObserver) -> None:
    """Each alias is kept, and each is closed in time."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)

    def task() -> tuple[object, object]:
        return backend("default"), backend("other")

    first = pool.submit(task).result(10)
    assert pool.submit(task).result(10) == first
    assert not postgres.left("app")
    assert not postgres.left("other")
    assert all_connections() == ()
    pool.shutdown()


def test_mariadb(age: Callable[[float | None], None], mariadb: MariaDBObserver) -> None:
    """On MariaDB too: kept with a CONN_MAX_AGE, and closed in time."""
    age(60)
    pool = ThreadPoolExecutor(1, conn_max_idle=2 * LONG)
    used = pool.submit(backend, "mariadb").result(10)
    pause(LONG)
    assert pool.submit(backend, "mariadb").result(10) == used
    assert not mariadb.left()
    assert all_connections() == ()
    pool.shutdown()


def test_a_reset_a_task() -> None:
    """Each task costs one reset, begun when it ends, not one for each time that the worker looks."""
    with registered(CountedResets()) as resets, ThreadPoolExecutor(1, conn_max_idle=30) as pool:
        for _ in range(20):
            pool.submit(Entry.objects.count).result(10)
            pool.submit(int).result(10)
    assert len(resets.begun) == 20
    assert len(resets.finished) == 19


@pytest.mark.parametrize("conn_max_idle", [math.inf, 1e300])
def test_for_ever(
    conn_max_idle: float, age: Callable[[float | None], None], postgres: PostgresObserver
) -> None:
    """Without end means until max age, and until the pool's end where that has no end either."""
    age(None)
    pool = ThreadPoolExecutor(1, conn_max_idle=conn_max_idle)
    used = pool.submit(backend).result(10)
    pause(0.1)
    assert pool.submit(backend).result(10) == used
    pool.shutdown()
    assert not postgres.left()


@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan])
def test_no_duration(value: float) -> None:
    """A number that is no duration is refused by name."""
    with pytest.raises(ValueError, match="conn_max_idle"):
        ThreadPoolExecutor(1, conn_max_idle=value)


@pytest.mark.parametrize("value", [None, "5", b"5", [5], 5j])
def test_no_number(value: Any) -> None:
    """What is no number is refused by name."""
    with pytest.raises(TypeError, match="conn_max_idle"):
        ThreadPoolExecutor(1, conn_max_idle=value)


# A connection that a worker did not open is never touched: a caller's, a test's, one lent to it.


def count_not_ours() -> int:
    return Entry.objects.count()


class Abandoned(Exception):
    """Leaves an `atomic` block."""


@pytest.mark.usefixtures("conn_max_age")
def test_submitted_inside_atomic(postgres: PostgresObserver) -> None:
    """The worker does not see the caller's row, and the caller's transaction rolls back as it should."""
    pool = ThreadPoolExecutor(2)
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        mine, pid = connection.connection, backend_pid()
        assert [pool.submit(count_not_ours).result(10) for _ in range(4)] == [0, 0, 0, 0]
        assert pool.submit(Entry.objects.create, name="of the worker").result(10).pk
        assert connection.connection is mine
        assert backend_pid() == pid
        assert connection.in_atomic_block
        assert set(Entry.objects.values_list("name", flat=True)) == {"of the caller", "of the worker"}
        assert [found.thread_ident for found in all_connections()] == [threading.get_ident()]
        raise Abandoned
    assert list(Entry.objects.values_list("name", flat=True)) == ["of the worker"]
    assert postgres.settled(1) == {pid}


@pytest.mark.usefixtures("conn_max_age")
def test_submitted_inside_atomic_and_committed() -> None:
    """The caller's transaction commits after tasks and the pool itself have come and gone."""
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: count_not_ours(), range(4)))
        with transaction.atomic():
            Entry.objects.create(name="in a savepoint")
    assert Entry.objects.count() == 2


@pytest.mark.usefixtures("conn_max_age")
def test_in_a_test_case() -> None:
    """A TestCase keeps its connection and its transaction, whatever tasks its tests run."""
    pids: list[int] = []

    class Case(TestCase):
        databases = {"default"}  # noqa: RUF012

        @classmethod
        def setUpTestData(cls) -> None:
            Entry.objects.create(name="of the class")
            pids.append(backend_pid())

        def test_submit(self) -> None:
            with ThreadPoolExecutor(2) as pool:
                Entry.objects.create(name="of the test")
                for future in [pool.submit(count_not_ours) for _ in range(4)]:
                    assert future.result(10) == 0
                assert Entry.objects.count() == 2
                assert connection.in_atomic_block
            pids.append(backend_pid())

        def test_again(self) -> None:
            ThreadPoolExecutor(1).submit(count_not_ours).result(10)
            assert Entry.objects.count() == 1
            pids.append(backend_pid())

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])
    assert len(pids) == 3
    assert len(set(pids)) == 1
    assert Entry.objects.count() == 0


@pytest.mark.usefixtures("conn_max_age")
def test_callback_in_the_callers_thread() -> None:
    """A done-callback that runs in the caller's thread closes nothing there."""
    future = ThreadPoolExecutor(1).submit(count_not_ours)
    concurrent.futures.wait([future], 10)
    ran_in: list[int] = []

    def callback(_: object) -> None:
        Entry.objects.create(name="of the callback")
        ran_in.append(threading.get_ident())

    with pytest.raises(Abandoned), transaction.atomic():
        pid = backend_pid()
        future.add_done_callback(callback)
        assert ran_in == [threading.get_ident()]
        assert backend_pid() == pid
        assert connection.in_atomic_block
        raise Abandoned
    assert backend_pid() == pid
    assert Entry.objects.count() == 0


@pytest.mark.usefixtures("conn_max_age")
def test_cancelling_in_the_callers_thread() -> None:
    """`shutdown(cancel_futures=True)`, which drains the queue in the caller's thread, closes nothing."""
    go_on = threading.Event()
    pool = ThreadPoolExecutor(1)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        pool.submit(go_on.wait, 10)
        waiting = [pool.submit(count_not_ours) for _ in range(3)]
        for future in waiting:
            future.add_done_callback(lambda _: count_not_ours())
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert backend_pid() == pid
        assert connection.in_atomic_block
        go_on.set()
    assert Entry.objects.count() == 1


def with_lent(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection, as Django's LiveServerThread does."""
    connections["default"] = lent
    try:
        return fn()
    finally:
        del connections["default"]


def leaving_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection and leave it registered in this thread."""
    connections["default"] = lent
    return fn()


def raising_on_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection and end by an exception that may mean an interrupted query."""
    connections["default"] = lent
    raise KeyboardInterrupt(fn())


def scoped_on_it(lent: Any, fn: Callable[[], Any]) -> Any:
    """Work on a lent connection inside a scope of its own, which gives back what it can."""
    with connection_scope():
        connections["default"] = lent
        release_connections()
        return fn()


USES = [with_lent, leaving_it, raising_on_it, scoped_on_it]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("where", ["worker", "thread", "guarded thread"])
@pytest.mark.usefixtures("conn_max_age")
def test_lent(use: Callable[..., Any], where: str, lent: Any, request: pytest.FixtureRequest) -> None:
    """A lent connection outlives the task and the thread that it was lent to, in its transaction."""
    if where == "guarded thread":
        request.getfixturevalue("watch_every_thread")
    executor: concurrent.futures.Executor
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the lender")
        mine, pid = lent.connection, backend_pid()
        executor = (
            ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
        )
        with executor:
            for _ in range(2):
                future = executor.submit(use, lent, lambda: (count_not_ours(), backend_pid()))
                error = future.exception(10)
                seen = future.result() if error is None else error.args[0]
                assert seen == (1, pid)
        assert lent.connection is mine
        assert backend_pid() == pid
        assert lent.in_atomic_block
        raise Abandoned
    assert backend_pid() == pid
    assert Entry.objects.count() == 0


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("where", ["worker", "guarded thread"])
@pytest.mark.usefixtures("conn_max_age")
def test_lent_unopened(where: str, lent: Any) -> None:
    """A lent connection that the borrower happens to connect first is the lender's all the same."""
    lent.close()
    executor = ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
    with executor:
        pid = executor.submit(leaving_it, lent, backend_pid).result(10)
    (found,) = all_connections()
    assert (found.backend_pid, found.thread_ident) == (pid, threading.get_ident())
    assert backend_pid() == pid


@pytest.mark.usefixtures("watch_every_thread")
@pytest.mark.parametrize("where", ["worker", "guarded thread"])
@pytest.mark.usefixtures("conn_max_age")
def test_lent_copy_unopened(where: str) -> None:
    """That holds for a wrapper that did not come from the handler too."""
    lent: Any = connection.copy()
    lent.inc_thread_sharing()
    executor = ThreadPoolExecutor(1) if where == "worker" else concurrent.futures.ThreadPoolExecutor(1)
    with executor:
        executor.submit(leaving_it, lent, backend_pid).result(10)
    try:
        assert lent.connection is not None
    finally:
        lent.close()


@pytest.mark.usefixtures("conn_max_age")
def test_own_and_lent_at_once(lent: Any, postgres: PostgresObserver) -> None:
    """A worker with its own connection on one alias and a lent one on another closes its own alone."""
    lent.ensure_connection()

    def task() -> int:
        Entry.objects.using("other").count()
        return int(leaving_it(lent, backend_pid))

    pid = ThreadPoolExecutor(1).submit(task).result(10)
    assert pid == backend_pid()
    assert [found.alias for found in all_connections()] == ["default"]
    assert not postgres.left("other")


@pytest.mark.usefixtures("conn_max_age")
def test_an_own_connection_is_closed_though_a_lent_one_took_its_place(
    lent: Any, postgres: PostgresObserver
) -> None:
    """What a worker opened before a lent wrapper took its place is closed; the lent one is not."""
    lent.ensure_connection()

    def task() -> int:
        count_not_ours()
        return int(leaving_it(lent, backend_pid))

    pid = ThreadPoolExecutor(1).submit(task).result(10)
    assert backend_pid() == pid
    connection.close()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_called_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `submit` in the standard class's place that calls at once touches nothing of the caller."""

    def at_once(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", at_once)
    with transaction.atomic():
        Entry.objects.create(name="of the caller")
        assert ThreadPoolExecutor(1).submit(Entry.objects.count).result(10) == 1
        assert connection.in_atomic_block
    assert Entry.objects.count() == 1
