"""Callbacks and initializers let go in a worker; in the caller's thread they are the caller's."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures.thread import BrokenThreadPool

import pytest
from django.db import connection, transaction

from django_executors import ThreadPoolExecutor, all_connections

from .gates import Gate
from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = [pytest.mark.usefixtures("collector_off", "conn_max_age")]

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
