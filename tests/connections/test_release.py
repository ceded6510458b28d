"""A task lets go before its future resolves, however it ended: counted on the server, collector off."""

from __future__ import annotations

import concurrent.futures
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, transaction

from django_executors import (
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    release_connections,
)
from django_executors.connections import sessions
from tests.projects.testapp.models import Entry
from tests.support.endings import ENDINGS, backend_pid, raw_begin
from tests.support.gates import Gate
from tests.support.kept import backend, results
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.opened import assert_none_open
from tests.support.waiting import wait_until

WORKERS = 4
#: The ages at which a kept session is reset, and at which it stays.
RESET_AND_REUSED = pytest.mark.parametrize(
    "conn_max_age", [0, 600], indirect=True, ids="CONN_MAX_AGE={}".format
)


def count(*aliases: str) -> int:
    return sum(Entry.objects.using(alias).count() for alias in aliases or ("default",))


def hold_together(pool: ThreadPoolExecutor, *aliases: str) -> int:
    """Have each worker hold a connection to these at once, and return how many were open then."""
    held: list[int] = []
    barrier = threading.Barrier(WORKERS, action=lambda: held.append(len(all_connections())))

    def task() -> None:
        count(*aliases)
        barrier.wait(20)

    results([pool.submit(task) for _ in range(WORKERS)])
    return held[0]


@pytest.mark.usefixtures("conn_max_age")
def test_full_house(postgres: PostgresObserver) -> None:
    """N tasks on N workers hold N connections an alias; when every result is there, none is left."""
    assert hold_together(ThreadPoolExecutor(WORKERS), "default", "other", "sqlite") == 3 * WORKERS
    assert all_connections() == ()
    assert not postgres.left("app")
    assert not postgres.left("other")


def test_full_house_on_mariadb(mariadb: MariaDBObserver) -> None:
    """The same on MariaDB."""
    assert hold_together(ThreadPoolExecutor(WORKERS), "mariadb") == WORKERS
    assert all_connections() == ()
    assert not mariadb.left()


@RESET_AND_REUSED
@pytest.mark.usefixtures("conn_max_age")
def test_nothing_is_held_when_the_future_resolves(holding: Gate) -> None:
    """A done-callback, the first to see the outcome, finds nothing open."""
    found: list[object] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(holding).add_done_callback(lambda _: found.append(all_connections()))
        holding.wait_for()
        holding.open()
    assert found == [()]


def test_alias_that_leaves_the_settings(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """An alias that is gone from the settings when the task ends is closed like the others."""
    monkeypatch.setitem(connections.settings, "passing", connections.settings["other"].copy())

    def task() -> None:
        count("passing")
        del connections.settings["passing"]

    ThreadPoolExecutor(1).submit(task).result(20)
    assert all_connections() == ()
    assert not postgres.left("other")


@RESET_AND_REUSED
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.usefixtures("conn_max_age")
def test_endings(ending: Callable[[], object], postgres: PostgresObserver) -> None:
    """However a task ends, nothing is left, its outcome stays, and the worker serves the next one."""
    pool = ThreadPoolExecutor(1)
    error = pool.submit(ending).exception(20)
    expected = ENDINGS[ending]
    assert error is None if expected is None else isinstance(error, expected)
    assert all_connections() == ()
    assert not postgres.left()
    assert pool.submit(Entry.objects.create, name="of the next task").result(20).pk
    assert all_connections() == ()
    assert [entry.name for entry in Entry.objects.all()] == ["of the next task"]


# Callbacks and initializers let go in a worker; in the caller's thread they are the caller's.


def test_callback_in_the_worker(
    gate: Gate, postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """What a done-callback opens is closed once the worker idles, though the callback raises."""
    held: list[int] = []
    called = threading.Event()

    def callback(_: object) -> None:
        count()
        held.extend(found.thread_ident for found in all_connections())
        called.set()
        raise LookupError("of the callback")

    pool = ThreadPoolExecutor(1)
    future = pool.submit(gate)
    future.add_done_callback(callback)
    gate.open()
    assert future.result(20) is None
    assert called.wait(20)
    assert held == gate.ended
    assert_none_open(postgres)
    assert [record.name for record in caplog.records] == ["concurrent.futures"]


def leave_a_session() -> None:
    """Leave settings and hooks, and nothing that makes the connection dirty."""
    connection.cursor().execute("SET application_name = 'left behind'")
    connection.execute_wrappers.append(lambda execute, *args: execute(*args))


def look() -> tuple[str, int, int]:
    """Return the session's name, the number of the wrapper's hooks and of the rows."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('application_name')")
        (name,) = cursor.fetchone()
    return name, len(connection.execute_wrappers), count()


LEAVE = pytest.mark.parametrize("leave", [leave_a_session, raw_begin])


@LEAVE
def test_next_task_meets_nothing_of_a_callback(
    leave: Callable[[], None], gate: Gate, postgres: PostgresObserver
) -> None:
    """A task that is queued while a callback runs has a session and a wrapper of its own."""
    pool = ThreadPoolExecutor(1)
    pool.submit(gate).add_done_callback(lambda _: leave())
    queued = pool.submit(look)
    gate.open()
    assert queued.result(20) == ("", 0, 0)
    assert_none_open(postgres)


@LEAVE
def test_first_task_meets_nothing_of_the_initializer(
    leave: Callable[[], None], postgres: PostgresObserver
) -> None:
    """Nor has the first task anything of its worker's initializer."""
    pool = ThreadPoolExecutor(1, initializer=leave)
    assert pool.submit(look).result(20) == ("", 0, 0)
    assert_none_open(postgres)


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["with a task", "without a task"])
def test_initializer(is_cancelled: bool, gate: Gate, postgres: PostgresObserver) -> None:
    """An initializer that uses the ORM leaves nothing once its worker waits, with or without a task."""

    def initializer(name: str) -> None:
        Entry.objects.create(name=name)
        gate()

    pool = ThreadPoolExecutor(1, "", initializer, ("of the initializer",))
    future = pool.submit(int)
    gate.wait_for()
    assert len(all_connections()) == 1
    assert future.cancel() if is_cancelled else not future.done()
    gate.open()
    assert_none_open(postgres)
    assert Entry.objects.get().name == "of the initializer"


def test_initializer_that_raises_after_a_shutdown(gate: Gate) -> None:
    """The other workers end all the same."""
    begins, workers = Gate(), list[threading.Thread]()

    def initializer() -> None:
        workers.append(threading.current_thread())
        if len(workers) == 2:
            begins()
            raise LookupError("of the second")

    pool = ThreadPoolExecutor(2, initializer=initializer)
    busy = pool.submit(gate)
    gate.wait_for()
    pool.submit(int)
    begins.wait_for()
    pool.shutdown(wait=False)
    begins.open()
    workers[1].join(20)
    gate.open()
    busy.result(20)
    workers[0].join(20)
    assert not any(worker.is_alive() for worker in workers)


# With `conn_max_idle`, an idle worker keeps its connection for a while, and closes it by itself.


SOON = 0.05


def set_age(monkeypatch: pytest.MonkeyPatch, age: float | None) -> None:
    for alias in ("default", "other"):
        monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", age)


@pytest.fixture(params=[False, True], ids=["trusted", "asked"])
def is_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kept connections taken to be alive, as after a moment, or their servers asked."""
    if request.param:
        monkeypatch.setattr(sessions, "BYPASS_WINDOW", 0.0)


@RESET_AND_REUSED
@pytest.mark.usefixtures("conn_max_age", "is_asked")
def test_one_task_at_a_time(postgres: PostgresObserver) -> None:
    """Tasks that come one by one share one backend of each alias, until the pool's end."""
    pool = ThreadPoolExecutor(1, conn_max_idle=60)
    used = set()
    for _ in range(3):
        used.add(pool.submit(lambda: (backend("default"), backend("other"))).result(20))
        assert len(postgres.backends("app")) == len(postgres.backends("other")) == 1
    assert len(used) == 1
    pool.shutdown()
    assert all_connections() == ()


@pytest.mark.parametrize("conn_max_age", [600], indirect=True)
@pytest.mark.usefixtures("conn_max_age", "is_asked")
def test_one_task_at_a_time_on_mariadb(mariadb: MariaDBObserver) -> None:
    """On MariaDB too, with a CONN_MAX_AGE."""
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        assert len({pool.submit(backend, "mariadb").result(20) for _ in range(3)}) == 1
    assert all_connections() == ()
    assert not mariadb.left()


@RESET_AND_REUSED
@pytest.mark.usefixtures("conn_max_age")
def test_the_worker_closes_it(postgres: PostgresObserver) -> None:
    """It is closed after that time although no task comes, by the worker, without an extra thread."""
    pool = ThreadPoolExecutor(WORKERS, conn_max_idle=SOON)
    before = set(threading.enumerate())
    for _ in range(2):
        assert hold_together(pool, "default", "other") == 2 * WORKERS
        assert_none_open(postgres)
        assert len(set(threading.enumerate()) - before) == WORKERS
    pool.shutdown()


def test_not_beyond_max_age(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> None:
    """A worker that may idle longer closes at the connection's max age, without a task."""
    set_age(monkeypatch, SOON)
    pool = ThreadPoolExecutor(1, conn_max_idle=60)
    pool.submit(count).result(20)
    assert_none_open(postgres)
    pool.shutdown()


@pytest.mark.parametrize("ahead", [0, 1])
def test_tasks_that_make_no_query(
    ahead: int, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """Tasks that make no query do not prolong it, whether they come one by one or are queued."""
    set_age(monkeypatch, SOON)
    pool = ThreadPoolExecutor(1, conn_max_idle=SOON)
    pool.submit(count).result(20)
    queued = [pool.submit(int) for _ in range(ahead)]
    deadline = time.monotonic() + 20
    while all_connections() and time.monotonic() < deadline:
        queued.append(pool.submit(int))
        queued.pop(0).result(20)
    assert all_connections() == ()
    results(queued)
    pool.shutdown()


@pytest.mark.parametrize("end", ["shutdown", "shutdown without waiting", "forgotten"])
def test_the_pools_end(end: str, postgres: PostgresObserver) -> None:
    """A pool that is shut down or forgotten lets go at once."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(WORKERS, conn_max_idle=60)
    assert pool is not None
    hold_together(pool, "default")
    assert len(postgres.backends()) == WORKERS
    if end != "forgotten":
        pool.shutdown(wait=end == "shutdown")
    pool = None
    assert_none_open(postgres)


def test_the_session_is_fresh_while_idle(postgres: PostgresObserver) -> None:
    """What the last task locked is free while its worker idles."""

    def task() -> object:
        connection.cursor().execute("SELECT pg_advisory_lock(77)")
        return backend()

    def locks() -> list[Any]:
        return postgres.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77")

    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        used = pool.submit(task).result(20)
        assert not wait_until(locks, lambda rows: not rows, within=20)
        assert postgres.backends() == {used}


def test_a_reset_a_task() -> None:
    """A task costs one reset, not one for each time that the worker looks; one without a query none."""
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        for _ in range(5):
            pool.submit(count).result(20)
            pool.submit(int).result(20)
        stats = pool.stats()
    assert (stats.connections_opened, stats.connections_reset) == (1, 4)


@pytest.mark.parametrize("conn_max_idle", [math.inf, 1e300])
def test_without_an_end(
    conn_max_idle: float, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """Without end means until max age, and until the pool's end where that has no end either."""
    set_age(monkeypatch, None)
    with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        assert len({pool.submit(backend).result(20) for _ in range(3)}) == 1
    assert_none_open(postgres)


def test_no_duration() -> None:
    """What is no duration, or no number at all, is refused by name."""
    values: list[Any] = [-0.001, -math.inf, math.nan, None, "5", 5j]
    for value in values:
        error = ValueError if isinstance(value, float) else TypeError
        with pytest.raises(error, match="conn_max_idle"):
            ThreadPoolExecutor(1, conn_max_idle=value)


# A connection that a worker did not open is never touched: a caller's, a test's, one lent to it.


class Abandoned(Exception):
    """Leaves an `atomic` block."""


def test_submitted_inside_atomic(postgres: PostgresObserver) -> None:
    """The worker does not see the caller's row, and the caller's transaction rolls back as it should."""
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the caller")
        pid = backend_pid()
        with ThreadPoolExecutor(2) as pool:
            assert results([pool.submit(count) for _ in range(4)]) == [0, 0, 0, 0]
            assert pool.submit(Entry.objects.create, name="of the worker").result(20).pk
        assert set(Entry.objects.values_list("name", flat=True)) == {"of the caller", "of the worker"}
        assert [found.backend_pid for found in all_connections()] == [pid]
        raise Abandoned
    assert Entry.objects.get().name == "of the worker"
    assert postgres.settled(1) == {pid}


def test_callbacks_in_the_callers_thread(gate: Gate) -> None:
    """A done-callback that runs in the caller's thread is part of its transaction there."""
    threads: list[int] = []

    def callback(_: object) -> None:
        Entry.objects.create(name="of a callback")
        threads.append(threading.get_ident())

    pool = ThreadPoolExecutor(1)
    running = pool.submit(gate)
    gate.wait_for()
    cancelled, drained = pool.submit(count), pool.submit(count)
    ended = ThreadPoolExecutor(1).submit(count)
    ended.result(20)
    with pytest.raises(Abandoned), transaction.atomic():
        pid = backend_pid()
        for future in (cancelled, drained, ended):
            future.add_done_callback(callback)
        assert cancelled.cancel()
        pool.shutdown(wait=False, cancel_futures=True)
        assert drained.cancelled()
        assert threads == [threading.get_ident()] * 3
        assert (backend_pid(), count()) == (pid, 3)
        raise Abandoned
    assert (backend_pid(), count()) == (pid, 0)
    gate.open()
    running.result(20)


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
POOLS = pytest.mark.parametrize(
    "pool_class",
    [ThreadPoolExecutor, concurrent.futures.ThreadPoolExecutor],
    ids=["our pool", "standard pool"],
)


@POOLS
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.usefixtures("watch_every_thread")
def test_lent(use: Callable[..., Any], pool_class: type[ThreadPoolExecutor], lent: Any) -> None:
    """A lent connection outlives the task and the thread that it was lent to, in its transaction."""
    with pytest.raises(Abandoned), transaction.atomic():
        Entry.objects.create(name="of the lender")
        pid = backend_pid()
        with pool_class(1) as pool:
            for _ in range(2):
                future = pool.submit(use, lent, lambda: (count(), backend_pid()))
                error = future.exception(20)
                assert (future.result() if error is None else error.args[0]) == (1, pid)
        assert backend_pid() == pid
        raise Abandoned
    assert (backend_pid(), count()) == (pid, 0)


@POOLS
@pytest.mark.parametrize("kind", ["own", "copy"])
@pytest.mark.usefixtures("watch_every_thread")
def test_lent_unopened(
    kind: str, pool_class: type[ThreadPoolExecutor], postgres: PostgresObserver
) -> None:
    """A lent wrapper is its lender's, even if it first connects in the borrower's thread."""
    lent: Any = connections["default"] if kind == "own" else connections["default"].copy()
    assert lent.connection is None
    lent.inc_thread_sharing()

    def borrow() -> None:
        connections["default"] = lent
        lent.set_autocommit(False)
        Entry.objects.create(name="of the borrower")

    try:
        with pool_class(1) as pool:
            pool.submit(borrow).result(20)
        (found,) = all_connections()
        assert found.thread_ident == threading.get_ident()
        assert postgres.settled(1) == {found.backend_pid}
        with lent.cursor() as cursor:
            cursor.execute("SELECT name FROM testapp_entry")
            assert cursor.fetchall() == [("of the borrower",)]
        lent.rollback()
    finally:
        lent.close()
        lent.dec_thread_sharing()
    assert_none_open(postgres)


@pytest.mark.parametrize("alias", ["default", "other"])
def test_own_and_lent_at_once(alias: str, lent: Any, postgres: PostgresObserver) -> None:
    """A worker's own connection is closed, though a lent one took its place; the lent one is not."""
    lent.ensure_connection()

    def task() -> int:
        count(alias)
        return int(leaving_it(lent, backend_pid))

    pid = ThreadPoolExecutor(1).submit(task).result(20)
    assert pid == backend_pid()
    assert [found.backend_pid for found in all_connections()] == [pid]
    assert postgres.settled(1) == {pid}
    assert not postgres.left("other")
