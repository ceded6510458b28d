"""What holds for every executor: in the caller's thread, in threads, in processes and on a cluster.

| | ImmediateExecutor | ThreadPoolExecutor | ProcessPoolExecutor, DaskExecutor |
|---|---|---|---|
| a task runs | in the caller's thread | in one of the pool's | in another process |
| its connection is | the caller's | the worker's | the worker's |
| what waits can be cancelled | nothing waits | yes | yes |
"""

from __future__ import annotations

import asyncio
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

from django_executors.testing import drain, run_inline
from tests.projects.testapp.models import Entry
from tests.support import process_tasks as tasks
from tests.support.kinds import KINDS, made_once, make
from tests.support.observers import PostgresObserver
from tests.support.waiting import wait_until

#: For tests of what waits, or runs meanwhile: in the caller's thread nothing does.
MEANWHILE = pytest.mark.parametrize("kind", KINDS[1:])
LOCK = 17


@pytest.fixture(scope="module")
def made() -> Iterator[Callable[[str], Any]]:
    with made_once() as find:
        yield find


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def pool(kind: str, made: Callable[[str], Any], postgres: PostgresObserver) -> Iterator[Any]:
    """An executor with one worker, of which nothing is left on the server when it is idle."""
    found = made(kind)
    yield found
    is_nothing_left(found, kind, postgres)


def is_nothing_left(pool: Any, kind: str, postgres: PostgresObserver) -> None:
    drain(30)
    if kind != "immediate":
        connection.close()
        assert not postgres.left()
    stats = pool.stats()
    assert (stats.busy, stats.pending) == (0, 0)
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled
    assert stats.connections_opened == stats.connections_closed


@contextlib.contextmanager
def held(pool: Any, postgres: PostgresObserver) -> Iterator[concurrent.futures.Future[bool]]:
    """Keep the only worker busy with the task of this future."""
    postgres.execute("SELECT pg_advisory_lock(%s)", LOCK)
    future = pool.submit(tasks.wait_for_unlock, LOCK)
    try:
        assert wait_until(future.running, within=30)
        yield future
    finally:
        postgres.execute("SELECT pg_advisory_unlock_all()")
    assert future.result(30) is True


def test_results(pool: Any) -> None:
    """They come by `result` and `as_completed`, with arguments by position and by name."""
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(sorted, [1, 3, 2], reverse=True).result(30) == [3, 2, 1]
    futures = [pool.submit(tasks.doubled, number) for number in range(20)]
    assert [future.result(30) for future in futures] == list(range(0, 40, 2))
    assert set(concurrent.futures.as_completed(futures, 30)) == set(futures)


@pytest.mark.parametrize(
    "error", [LookupError("no", 17), tasks.Odd("odd", code=3), SystemExit(4)], ids=repr
)
def test_errors(error: BaseException, pool: Any) -> None:
    """The task's own error, as it was, and the next task has a session of its own."""
    failed = pool.stats().failed
    future = pool.submit(tasks.raise_in_atomic, error)
    found = future.exception(30)
    assert (type(found), found.args) == (type(error), error.args)
    assert vars(found).get("code") == vars(error).get("code")
    with pytest.raises(type(error)):
        future.result()
    assert pool.submit(tasks.names).result(30) == []
    assert pool.stats().failed == failed + 1


def test_await(pool: Any) -> None:
    """A coroutine has its result, or its error, and several of them at once."""

    with transaction.atomic():
        committed = pool.submit_on_commit(tasks.doubled, 4)
    failed = pool.submit(tasks.raise_in_atomic, LookupError("no"))

    async def main() -> None:
        assert await pool.submit(abs, -42) == 42
        assert await committed == 8
        with pytest.raises(LookupError, match="no"):
            await failed
        async with asyncio.timeout(30):
            assert await asyncio.gather(pool.submit(abs, -1), pool.submit(abs, -2)) == [1, 2]

    asyncio.run(main())


@MEANWHILE
def test_await_cancelled(pool: Any, postgres: PostgresObserver) -> None:
    """A coroutine that is cancelled while it waits cancels the task, if that has not begun."""

    async def main() -> None:
        behind = [pool.submit(tasks.create, str(number)) for number in range(6)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await behind[-1]
        assert behind[-1].cancelled()

    with held(pool, postgres):
        asyncio.run(main())


@MEANWHILE
def test_cancel(pool: Any, postgres: PostgresObserver) -> None:
    """What waits never runs; what has begun goes on."""
    cancelled = pool.stats().cancelled
    with held(pool, postgres) as running:
        behind = [pool.submit(tasks.create, str(number)) for number in range(6)]
        assert not running.cancel()
        assert behind[-1].cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            behind[-1].result()
        assert pool.stats().cancelled == cancelled + 1
    concurrent.futures.wait(behind[:-1], 30)
    assert not Entry.objects.filter(name="5").exists()


@pytest.mark.parametrize("timeout", [None, 0])
@MEANWHILE
def test_shutdown(
    timeout: float | None, kind: str, postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """Refuses tasks; cancels what waits, if it is told so."""
    pool = make(kind)
    with held(pool, postgres):
        behind = [pool.submit(int) for _ in range(6)]
        if timeout is None:
            pool.shutdown(wait=False, cancel_futures=True)
        else:
            pool.shutdown(timeout=timeout)
        # Polled: in the standard pool of threads, `wait` does not wake up for those.
        assert wait_until(lambda: all(future.cancelled() for future in behind[-2:]), within=30)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(int)
        said = [text for text in caplog.messages if "shutdown left" in text]
        assert len(said) == (timeout is not None)
        for left in ("running=", "tests.support.process_tasks.wait_for_unlock", "not_run="):
            assert all(left in each for each in said)
    pool.shutdown()
    is_nothing_left(pool, kind, postgres)
    assert wait_until(lambda: pool.stats().workers == 0, within=30)


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
    items = iter(range(100))
    results = pool.map(abs, items, buffersize=3)
    assert next(results) == 0
    results.close()
    assert next(items) == 4


@MEANWHILE
def test_map_timeout(pool: Any, postgres: PostgresObserver) -> None:
    """`map` raises TimeoutError when a result does not come in time."""
    with held(pool, postgres), pytest.raises(TimeoutError):
        next(pool.map(abs, [1] * 6, timeout=0))


def test_on_commit(pool: Any) -> None:
    """The task sees what was committed; after a rollback it never runs."""
    with transaction.atomic():
        Entry.objects.create(name="new")
        future = pool.submit_on_commit(tasks.names)
        assert not future.done()
    assert future.result(30) == ["new"]
    with transaction.atomic():
        future = pool.submit_on_commit(tasks.create, "never")
        transaction.set_rollback(True)
    assert concurrent.futures.wait([future], 30).done == {future}
    assert future.cancelled()
    assert pool.submit_on_commit(tasks.names).result(30) == ["new"]


def test_context(kind: str, pool: Any) -> None:
    """A task has what its submitter activated, in this process contextvars too, and leaves nothing."""

    def submitted() -> Any:
        with translation.override("de"), timezone.override(ZoneInfo("Asia/Tokyo")):
            tasks.request_id.set(17)
            return pool.submit(tasks.surroundings)

    future = contextvars.copy_context().run(submitted)
    variable = 17 if kind in {"immediate", "thread"} else "unset"
    assert future.result(30) == ("de", "Asia/Tokyo", variable)
    before = tasks.surroundings()
    pool.submit(tasks.change_surroundings).result(30)
    assert tasks.surroundings() == before
    assert pool.submit(tasks.surroundings).result(30) == before


def test_connections(kind: str, pool: Any, postgres: PostgresObserver) -> None:
    """However a task ends, the caller's connection is as it was, and that of a worker is gone."""
    own = tasks.server_pid("default")
    for task in (tasks.server_pids, tasks.fail, tasks.names):
        pool.submit(task).exception(30)
        assert wait_until(postgres.backends, lambda pids: pids == {own}) == {own}
    process, session = pool.submit(tasks.server_pids).result(30)
    assert (session == own) is (kind == "immediate")
    assert (process == os.getpid()) is (kind in {"immediate", "thread"})
    assert tasks.server_pid("default") == own


def test_callbacks(pool: Any) -> None:
    """They run once, may use the ORM, and one that raises changes nothing."""
    called: list[Any] = []
    over = threading.Event()

    def callback(future: Any) -> None:
        called.append((future.result(), Entry.objects.count()))
        over.set()
        raise LookupError("of the callback")

    pool.submit(tasks.names).add_done_callback(callback)
    assert over.wait(30)
    assert pool.submit(tasks.names).result(30) == []
    assert called == [([], 0)]


def test_run_inline(pool: Any) -> None:
    """Within it, tasks run in the caller's thread, in its transaction."""
    with run_inline(), transaction.atomic():
        Entry.objects.create(name="not committed")
        future = pool.submit(tasks.names)
        assert future.done()
        assert future.result() == ["not committed"]
        assert list(pool.map(abs, [-1, -2], chunksize=2)) == [1, 2]
        transaction.set_rollback(True)
