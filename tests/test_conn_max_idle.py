"""With `conn_max_idle`, an idle worker keeps its connection for a while, and closes it by itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections

from .keeping import CountedResets, backend, registered, results
from .observers import MariaDBObserver, PostgresObserver
from .test_fresh_sessions import resets_are_on  # noqa: F401
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off", "resets_are_on")

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
def test_two_aliases(postgres: PostgresObserver) -> None:
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
