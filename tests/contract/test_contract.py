"""What holds for every executor: in the caller's thread, in threads, in processes and on a cluster.

| | ImmediateExecutor | ThreadPoolExecutor | ProcessPoolExecutor, DaskExecutor |
|---|---|---|---|
| a task runs | in the caller's thread | in one of the pool's | in another process |
| its connection is | the caller's | the worker's | the worker's |
| what waits can be cancelled | nothing waits | yes | yes |
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection, transaction
from django.utils import timezone, translation

from django_executors import ImmediateExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from django_executors.dask import DaskExecutor
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")

EXECUTORS: dict[str, Callable[[], Any]] = {
    "immediate": ImmediateExecutor,
    "thread": lambda: ThreadPoolExecutor(1),
    "process": lambda: ProcessPoolExecutor(1),
    "dask": lambda: DaskExecutor(n_workers=1, threads_per_worker=1),
}
LOCK = 17


@pytest.fixture(params=EXECUTORS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def pool(kind: str, postgres: PostgresObserver) -> Iterator[Any]:
    """One executor, of which nothing is left on the server when it is idle."""
    with EXECUTORS[kind]() as found:
        yield found
        with contextlib.suppress(RuntimeError):  # it is shut down
            concurrent.futures.wait([found.submit(int)])
        if kind != "immediate":
            connection.close()
            assert not postgres.left()
    stats = wait_until(found.stats, lambda stats: not stats.workers, within=20)
    assert (stats.busy, stats.pending, stats.workers) == (0, 0, 0)
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled
    assert stats.connections_opened == stats.connections_closed


@pytest.fixture
def held(kind: str, pool: Any, postgres: PostgresObserver) -> Iterator[concurrent.futures.Future[bool]]:
    """The future of a task that keeps the only worker busy until the test ends."""
    if kind == "immediate":
        pytest.skip("nothing waits")
    postgres.execute("SELECT pg_advisory_lock(%s)", LOCK)
    future = pool.submit(tasks.wait_for_unlock, LOCK)
    yield future
    postgres.execute("SELECT pg_advisory_unlock_all()")
    assert future.result(30) is True


def test_results(pool: Any) -> None:
    assert pool.submit(divmod, 7, 2).result(30) == (3, 1)
    assert pool.submit(sorted, [1, 3, 2], reverse=True).result(30) == [3, 2, 1]
    futures = [pool.submit(tasks.doubled, number) for number in range(20)]
    assert [future.result(30) for future in futures] == list(range(0, 40, 2))
    assert set(concurrent.futures.as_completed(futures, 30)) == set(futures)
    assert isinstance(pool, concurrent.futures.Executor)


@pytest.mark.parametrize("error", [LookupError("no", 17), tasks.Odd("odd", code=3), SystemExit(4)])
def test_errors(error: BaseException, pool: Any) -> None:
    """The task's own error, as it was, and the next task has a session of its own."""
    future = pool.submit(tasks.raise_in_atomic, error)
    found = future.exception(30)
    assert (type(found), found.args) == (type(error), error.args)
    assert vars(found).get("code") == vars(error).get("code")
    with pytest.raises(type(error)):
        future.result()
    assert pool.submit(tasks.names).result(30) == []
    assert pool.stats().failed == 1


def test_cancel(held: Any, pool: Any) -> None:
    """What waits never runs; what has begun goes on."""
    behind = [pool.submit(tasks.create, str(number)) for number in range(6)]
    assert wait_until(held.running, within=20)
    assert not held.cancel()
    assert behind[-1].cancel()
    assert behind[-1].cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        behind[-1].result()
    assert pool.stats().cancelled == 1


@pytest.mark.parametrize("timeout", [None, 0])
def test_shutdown(timeout: float | None, held: Any, pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Refuses tasks; cancels what waits, if it is told so."""
    assert wait_until(held.running, within=20)
    behind = [pool.submit(int) for _ in range(6)]
    if timeout is None:
        pool.shutdown(wait=False, cancel_futures=True)
    else:
        pool.shutdown(timeout=timeout)
    concurrent.futures.wait(behind[-2:], 20)
    assert [future.cancelled() for future in behind[-2:]] == [True, True]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    assert ("shutdown left" in caplog.text) is (timeout is not None)


def test_map(pool: Any) -> None:
    """Results come in order, whatever the size of chunks and buffer."""
    for chunksize, buffersize in itertools.product([1, 3, 100], [None, 1, 2]):
        results = pool.map(
            pow, range(10), itertools.repeat(2), chunksize=chunksize, buffersize=buffersize
        )
        assert list(results) == [number**2 for number in range(10)]
    with pytest.raises(ZeroDivisionError):
        list(pool.map(divmod, [1, 1], [1, 0]))
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(int, [], buffersize=0)


def test_laziness(pool: Any) -> None:
    """With a buffersize, no more items are read than are asked for."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = pool.map(abs, items(), buffersize=3)
    assert len(read) == 3
    assert next(results) == 0
    assert len(read) == 4
    results.close()
    assert len(read) == 4


def test_map_timeout(held: Any, pool: Any) -> None:
    with pytest.raises(TimeoutError):
        next(pool.map(abs, [1] * 6, timeout=0))


@pytest.mark.parametrize("commits", [True, False])
def test_on_commit(commits: bool, pool: Any) -> None:
    """The task sees what was committed, or never runs."""
    with transaction.atomic():
        Entry.objects.create(name="new")
        future = pool.submit_on_commit(tasks.names)
        assert not future.done()
        transaction.set_rollback(not commits)
    if commits:
        assert future.result(30) == ["new"]
    else:
        assert concurrent.futures.wait([future], 20).done == {future}
        assert future.cancelled()
    assert pool.submit_on_commit(tasks.names).result(30) == (["new"] if commits else [])


def test_context(pool: Any) -> None:
    """A task has its submitter's language, time zone and variables, and leaves nothing of its own."""

    def submitted() -> Any:
        with translation.override("de"), timezone.override(ZoneInfo("Asia/Tokyo")):
            tasks.request_id.set(17)
            return pool.submit(tasks.surroundings)

    future = contextvars.copy_context().run(submitted)
    assert future.result(30) == ("de", "Asia/Tokyo", 17)
    before = tasks.surroundings()
    pool.submit(tasks.change_surroundings).result(30)
    assert tasks.surroundings() == before
    assert pool.submit(tasks.surroundings).result(30) == before


def test_connections(kind: str, pool: Any, postgres: PostgresObserver) -> None:
    """However a task ends, the caller's connection is as it was, and that of a worker is gone."""
    own = tasks.server_pid("default")
    for task in (tasks.server_pids, tasks.fail, tasks.names):
        future = pool.submit(task)
        future.exception(30)
        assert wait_until(postgres.backends, lambda pids: pids == {own}) == {own}
    process, session = pool.submit(tasks.server_pids).result(30)
    assert (session == own) is (kind == "immediate")
    assert (process == os.getpid()) is (kind in {"immediate", "thread"})
    assert tasks.server_pid("default") == own


def test_callbacks(pool: Any, postgres: PostgresObserver) -> None:
    """They run once, may use the ORM, and one that raises changes nothing."""
    called: list[Any] = []
    over = threading.Event()

    def callback(future: Any) -> None:
        called.append((future.result(), Entry.objects.count()))
        over.set()
        raise LookupError("of the callback")

    future = pool.submit(tasks.names)
    future.add_done_callback(callback)
    assert over.wait(20)
    assert called == [([], 0)]
    assert pool.submit(tasks.names).result(30) == []


def test_run_inline(pool: Any) -> None:
    with run_inline(), transaction.atomic():
        Entry.objects.create(name="not committed")
        future = pool.submit(tasks.names)
        assert future.done()
        assert future.result() == ["not committed"]
        assert list(pool.map(abs, [-1, -2], chunksize=2)) == [1, 2]
        transaction.set_rollback(True)
    assert pool.stats().workers == 0
