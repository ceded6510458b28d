"""`max_pending`: at most so many tasks are submitted and have not begun."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Standard
from typing import Any, TypeVar

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction
from django.utils import translation

from django_executors import (
    ExecutorError,
    QueueFull,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from tests.projects.testapp.models import Entry
from tests.support.blocked import blocked, full, submitter
from tests.support.draining import query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.shutting import beside
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

__all__ = ["submitter"]


def test_raises(gate: Gate) -> None:
    """With `when_full="raise"` a full queue refuses, with the numbers, until a task has begun."""
    pool = full(gate, when_full="raise")
    with pytest.raises(QueueFull, match=r"workers=1 busy=1 pending=2$") as caught:
        pool.submit(int)
    assert isinstance(caught.value, ExecutorError)
    assert isinstance(caught.value, queue.Full)
    assert pool.stats().rejected == 1
    gate.open()
    wait_until(pool.stats, lambda stats: stats.pending == 0)
    assert pool.submit(int).result(10) == 0
    assert (pool.stats().rejected, pool.stats().submitted) == (1, 4)
    pool.shutdown()


def test_blocks(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """By default `submit` waits until a task has begun, and then submits."""
    pool = full(gate)
    submitting = submitter.submit(pool.submit, int)
    assert wait_until(blocked)
    assert pool.stats().pending == 2
    gate.open()
    assert submitting.result(10).result(10) == 0
    pool.shutdown()
    assert pool.stats().rejected == 0


def test_cancelled_makes_room(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """A task that is cancelled gives its place to who waits, once, however often it is cancelled."""
    pool = ThreadPoolExecutor(1, max_pending=2)
    pool.submit(gate)
    gate.wait_for()
    pending = [pool.submit(int) for _ in range(2)]
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert wait_until(blocked, lambda count: count == 2) == 2
    for _ in range(3):
        assert pending[0].cancel()
    done, waiting = concurrent.futures.wait(submitting, 10, return_when="FIRST_COMPLETED")
    assert (len(done), len(waiting)) == (1, 1)
    assert wait_until(blocked, lambda count: count == 1) == 1
    assert (pool.stats().pending, pool.stats().cancelled) == (2, 1)
    gate.open()
    assert all(future.result(10).result(10) == 0 for future in submitting)
    pool.shutdown()


@pytest.mark.parametrize("cancel_futures", [False, True])
@pytest.mark.parametrize("timeout", [None, 20])
def test_shutdown_wakes_up(
    cancel_futures: bool, timeout: float | None, gate: Gate, submitter: concurrent.futures.Executor
) -> None:
    """Submitters who wait hear the standard error when the pool is shut down, and none gets in."""
    pool = full(gate)
    submitting = [submitter.submit(pool.submit, int) for _ in range(4)]
    assert wait_until(blocked)
    with beside(lambda: pool.shutdown(cancel_futures=cancel_futures, timeout=timeout)):
        for future in submitting:
            with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
                future.result(10)
        gate.open()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    assert pool.stats().submitted == 3


def test_in_a_task(gate: Gate) -> None:
    """A worker never waits for room in its own pool: it hears `QueueFull` in the place of waiting."""
    pool = ThreadPoolExecutor(2, max_pending=1)
    pool.submit(gate)
    gate.wait_for()

    def submit_two() -> None:
        pool.submit(int)
        with pytest.raises(QueueFull, match="a worker of its own would wait for itself"):
            pool.submit(int)

    pool.submit(submit_two).result(10)
    gate.open()
    pool.shutdown()
    assert (pool.stats().submitted, pool.stats().rejected) == (3, 1)


def test_in_an_event_loop(gate: Gate) -> None:
    """Nor does a thread in which an event loop runs."""
    pool = ThreadPoolExecutor(1, max_pending=1)
    pool.submit(gate)
    gate.wait_for()

    async def submit_two() -> None:
        pool.submit(int)
        with pytest.raises(QueueFull, match="waiting would block the event loop"):
            pool.submit(int)

    asyncio.run(submit_two())
    gate.open()
    pool.shutdown()


@pytest.mark.timeout(300)
def test_many_submitters(postgres: PostgresObserver) -> None:
    """16 submitters and 100,000 tasks: never more than 100 pending, and each task runs exactly once."""
    count, submitters = 100_000, 16
    done: list[int] = []
    over: list[int] = []

    def submit(first: int) -> None:
        for number in range(first, count, submitters):
            pool.submit(done.append, number)
            if not 0 <= (pending := pool.stats().pending) <= 100:
                over.append(pending)

    pool = ThreadPoolExecutor(4, max_pending=100)
    with concurrent.futures.ThreadPoolExecutor(submitters) as threads:
        submitting = [threads.submit(submit, first) for first in range(submitters)]
        for each in submitting:
            each.result(200)
    pool.shutdown()
    assert over == []
    assert sorted(done) == list(range(count))
    assert (pool.stats().submitted, pool.stats().completed, pool.stats().pending) == (count, count, 0)


def test_inline_has_no_queue(gate: Gate) -> None:
    """Within `run_inline` tasks run at once, and nothing is pending."""
    from django_executors.testing import run_inline

    pool = ThreadPoolExecutor(1, max_pending=1, when_full="raise")
    with run_inline():
        assert [pool.submit(int).result() for _ in range(5)] == [0] * 5
    assert (pool.stats().completed, pool.stats().workers) == (5, 0)
    pool.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_pending": 0}, ValueError, "max_pending must be 1 or more, not 0"),
        ({"max_pending": -1}, ValueError, "max_pending must be 1 or more, not -1"),
        ({"max_pending": 1.5}, TypeError, "max_pending must be an int or None, not 1.5"),
        ({"max_pending": True}, TypeError, "max_pending must be an int or None, not True"),
        ({"max_pending": "8"}, TypeError, "max_pending must be an int or None, not '8'"),
        ({"when_full": "wait"}, ValueError, "when_full must be 'block' or 'raise', not 'wait'"),
        (
            {"when_full": "raise"},
            ValueError,
            "when_full='raise' needs max_pending, or the queue is never full",
        ),
        ({"when_full": None}, ValueError, "when_full must be 'block' or 'raise', not None"),
    ],
)
def test_wrong_values(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """A wrong value is refused by name, with what may be there."""
    with pytest.raises(error, match=f"^{said}$"):
        ThreadPoolExecutor(1, **options)


def test_holds_nothing(postgres: PostgresObserver) -> None:
    """A bounded pool lets go of its connections as any does."""
    with ThreadPoolExecutor(4, max_pending=2) as pool:
        futures = [pool.submit(query) for _ in range(200)]
        assert all(future.result(20) for future in futures)
        assert not postgres.left()


# asyncio takes the pool as its executor.


T = TypeVar("T")
WORKERS = 8


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, for 30 seconds at the most, with nothing of the loop left for a collector."""

    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


def add(name: str) -> str:
    return Entry.objects.create(name=name).name


def seen_by_task(barrier: threading.Barrier) -> list[tuple[str | None, str | None]]:
    Entry.objects.count()
    barrier.wait(10)
    seen = [(info.executor, info.task) for info in all_connections()]
    barrier.wait(10)
    return seen


@contextlib.contextmanager
def nothing_left(postgres: PostgresObserver) -> Iterator[None]:
    yield
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_to_thread(postgres: PostgresObserver) -> None:
    """`asyncio.to_thread` on our pool as the loop's default gives the results, and nothing is left."""
    names = [f"entry {number}" for number in range(40)]

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
        with nothing_left(postgres):
            return await asyncio.gather(*(asyncio.to_thread(add, name) for name in names))

    assert run(main()) == names
    assert Entry.objects.count() == 40


@pytest.mark.usefixtures("conn_max_age")
def test_to_thread_carries_context(postgres: PostgresObserver) -> None:
    """What `asyncio.to_thread` copies reaches the task."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def task() -> tuple[str, int]:
        return variable.get(), Entry.objects.count()

    async def main() -> tuple[str, int]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        variable.set("of the caller")
        with nothing_left(postgres):
            return await asyncio.to_thread(task)

    assert run(main()) == ("of the caller", 0)


@pytest.mark.usefixtures("conn_max_age")
def test_name_of_the_task() -> None:
    """`all_connections()` calls a task of `asyncio.to_thread` by its function's name."""
    barrier = threading.Barrier(2)

    async def main() -> list[list[tuple[str | None, str | None]]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2, "of the loop"))
        return await asyncio.gather(
            asyncio.to_thread(seen_by_task, barrier),
            asyncio.to_thread(functools.partial(seen_by_task, barrier=barrier)),
        )

    expected = [("of the loop", f"{__name__}.seen_by_task")] * 2
    assert run(main()) == [expected, expected]


@pytest.mark.usefixtures("conn_max_age")
def test_run_in_executor(postgres: PostgresObserver) -> None:
    """`loop.run_in_executor` takes the pool, without making it the default."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(WORKERS) as pool, nothing_left(postgres):
            return await asyncio.gather(
                *(loop.run_in_executor(pool, add, name) for name in ("a", "b", "c"))
            )

    assert run(main()) == ["a", "b", "c"]


@pytest.mark.usefixtures("conn_max_age")
def test_run_in_executor_carries_context() -> None:
    """The submitter's context variables and language reach the task; in a standard pool they do not."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="of nobody")

    def task() -> tuple[str, str | None]:
        return variable.get(), translation.get_language()

    async def main(pool: concurrent.futures.Executor) -> tuple[str, str | None]:
        variable.set("of the caller")
        with pool, translation.override("de"):
            return await asyncio.get_running_loop().run_in_executor(pool, task)

    assert run(main(ThreadPoolExecutor(1))) == ("of the caller", "de")
    assert run(main(concurrent.futures.ThreadPoolExecutor(1))) == ("of nobody", "en-us")


@pytest.mark.usefixtures("conn_max_age")
def test_wrap_future(postgres: PostgresObserver) -> None:
    """`asyncio.wrap_future` awaits a future of ours: its result or its exception."""

    def fails() -> None:
        Entry.objects.count()
        raise LookupError("of the task")

    async def main() -> None:
        pool = ThreadPoolExecutor(1)
        with nothing_left(postgres):
            assert await asyncio.wrap_future(pool.submit(add, "a")) == "a"
            with pytest.raises(LookupError, match="of the task"):
                await asyncio.wrap_future(pool.submit(fails))

    run(main())


@pytest.mark.usefixtures("conn_max_age")
def test_cancelled_await(postgres: PostgresObserver) -> None:
    """A task whose awaiter was cancelled lets go when it ends all the same."""
    started, go_on = threading.Event(), threading.Event()

    def task() -> None:
        Entry.objects.count()
        started.set()
        assert go_on.wait(10)

    async def main() -> None:
        pool = ThreadPoolExecutor(1)
        future = pool.submit(task)
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.to_thread(started.wait, 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        future.result(10)

    with nothing_left(postgres):
        run(main())


@pytest.mark.usefixtures("conn_max_age")
def test_end_of_the_loop(postgres: PostgresObserver) -> None:
    """`asyncio.run` waits for all that its default executor has to do, and leaves no thread."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, "of the loop"))
        await asyncio.to_thread(add, "awaited")
        for number in range(20):
            loop.run_in_executor(None, add, str(number))

    for runs in (1, 2):
        asyncio.run(main())
        assert all_connections() == ()
        assert not [t for t in threading.enumerate() if t.name.startswith("of the loop")]
        assert not postgres.left()
        assert Entry.objects.count() == runs * 21
        connection.close()


@pytest.mark.usefixtures("conn_max_age")
def test_one_executor_for_two_loops() -> None:
    """The first loop's end has shut it down."""
    pool = ThreadPoolExecutor(1)

    async def main() -> int:
        asyncio.get_running_loop().set_default_executor(pool)
        return await asyncio.to_thread(int)

    assert run(main()) == 0
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        run(main())


@pytest.mark.usefixtures("conn_max_age")
def test_shutdown_default_executor(postgres: PostgresObserver) -> None:
    """The loop shuts the pool down: its workers end, and it takes no more."""
    pool = ThreadPoolExecutor(WORKERS, "of the loop")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        await asyncio.gather(*(asyncio.to_thread(Entry.objects.count) for _ in range(WORKERS)))
        await loop.shutdown_default_executor()
        assert not [t for t in threading.enumerate() if t.name.startswith("of the loop")]

    with nothing_left(postgres):
        run(main())
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


# Cancelling the code that awaits a task cancels the task if it has not begun, and not if it has.


Task = Callable[[], object]
Waiting = Coroutine[Any, Any, object]
#: Submits a task, and returns what is to be awaited.
Way = Callable[[ThreadPoolExecutor, Task], Awaitable[Awaitable[object]]]
#: Cancels the code that waits, when its task is in the queue.
Cancel = Callable[[Waiting, ThreadPoolExecutor], Awaitable[None]]


async def by_wrap_future(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.wrap_future(pool.submit(task))


async def by_run_in_executor(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.get_running_loop().run_in_executor(pool, task)


async def by_to_thread(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    asyncio.get_running_loop().set_default_executor(pool)
    return asyncio.to_thread(task)


@async_to_sync
async def coroutine(task: Task) -> object:
    return task()


async def as_a_coroutine(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.wrap_future(pool.submit(coroutine, task))


async def on_commit(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    submit = connection_scope(transaction.atomic(pool.submit_on_commit))
    return asyncio.wrap_future(await sync_to_async(submit)(task))


WAYS = [by_wrap_future, by_run_in_executor, by_to_thread, as_a_coroutine, on_commit]


async def wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


async def until(pool: ThreadPoolExecutor, number: str) -> None:
    """Return when there is one of them."""
    with ThreadPoolExecutor(1) as other:
        found = other.submit(wait_until, lambda: getattr(pool.stats(), number), within=10)
        assert await asyncio.wrap_future(found) == 1


async def by_cancel(waiting: Waiting, pool: ThreadPoolExecutor, number: str = "pending") -> None:
    task = asyncio.ensure_future(waiting)
    await until(pool, number)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(waiting: Waiting, pool: ThreadPoolExecutor) -> None:
    limit = asyncio.timeout(None)

    async def bounded() -> None:
        async with limit:
            await waiting

    task = asyncio.ensure_future(bounded())
    await until(pool, "pending")
    limit.reschedule(0)
    with pytest.raises(TimeoutError):
        await task


async def by_task_group(waiting: Waiting, pool: ThreadPoolExecutor) -> None:
    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        async with asyncio.TaskGroup() as group:
            group.create_task(waiting)
            await until(pool, "pending")
            raise LookupError("of its neighbour")


@pytest.mark.parametrize("cancel", [by_cancel, by_timeout, by_task_group])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("idle_before_and_after")
def test_not_begun(way: Way, cancel: Cancel, gate: Gate, postgres: PostgresObserver) -> None:
    """It is cancelled when its awaiter has heard of it, and never runs."""
    ran: list[str] = []

    async def main() -> None:
        pool.submit(gate)
        gate.wait_for()
        await cancel(wait_for(await way(pool, lambda: ran.append("the task"))), pool)
        stats = pool.stats()
        assert (stats.cancelled, stats.pending, stats.busy) == (1, 0, 1)
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert ran == []
    assert (pool.stats().completed, pool.stats().failed) == (1, 0)


@pytest.mark.usefixtures("idle_before_and_after")
def test_shielded(gate: Gate) -> None:
    """A task whose future is shielded is not cancelled with its awaiter."""

    async def main() -> None:
        pool.submit(gate)
        gate.wait_for()
        waiting = await by_wrap_future(pool, lambda: ran.append("the task"))
        await by_cancel(wait_for(asyncio.shield(waiting)), pool)
        gate.open()
        await asyncio.wrap_future(pool.submit(int))  # behind it

    ran: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        run(main())
    assert ran == ["the task"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("idle_before_and_after")
def test_begun(way: Way, gate: Gate, postgres: PostgresObserver) -> None:
    """It runs to its end, and lets go then."""

    async def main() -> None:
        await by_cancel(wait_for(await way(pool, gate)), pool, "busy")
        assert pool.stats().busy == 1
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert len(gate.ended) == 1
    assert (pool.stats().completed, pool.stats().cancelled) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("idle_before_and_after")
def test_begun_and_fails(way: Way, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of the error, of which asyncio drops all trace: the page warns of that."""

    def fails() -> None:
        gate()
        raise LookupError("of the task")

    async def main() -> None:
        await by_cancel(wait_for(await way(pool, fails)), pool, "busy")
        gate.open()

    with ThreadPoolExecutor(1) as pool:
        run(main())
    assert pool.stats().failed == 1
    assert caplog.records == []


@pytest.mark.usefixtures("idle_before_and_after")
def test_before_the_commit(gate: Gate) -> None:
    """Synchronous code goes on when its awaiter is cancelled, and what it submits at its commit runs."""
    ran: list[str] = []

    def place() -> None:
        with transaction.atomic():
            pool.submit_on_commit(lambda: ran.append("the task"))
            gate()

    async def main() -> None:
        waiting = asyncio.ensure_future(sync_to_async(connection_scope(place))())
        await asyncio.to_thread(gate.wait_for)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ran == []
        gate.open()

    pool = ThreadPoolExecutor(1)
    run(main())
    assert wait_until(lambda: ran, within=10) == ["the task"]
    assert wait_until(all_connections, lambda found: not found, within=10) == ()


# Tools that replace the standard class's `submit`: a task sees what they set in the worker.


TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")
OTHER: contextvars.ContextVar[str] = contextvars.ContextVar("other", default="none")


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give each task a trace of its own, as Sentry and OpenTelemetry do, and return all of them."""
    original = Standard.submit
    traces: list[str] = []

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        traces.append(trace := f"trace {len(traces)}")

        def traced(*args: Any, **kwargs: Any) -> Any:  # nobody can tell whom it calls
            token = TRACE.set(trace)
            try:
                return fn(*args, **kwargs)
            finally:
                TRACE.reset(token)

        return original(self, traced, *args, **kwargs)

    monkeypatch.setattr(Standard, "submit", submit)
    return traces


@pytest.fixture(params=[True, False], ids=["inherits", "does not inherit"])
def pool(request: pytest.FixtureRequest) -> Any:
    with ThreadPoolExecutor(1, inherit_context=request.param) as pool:
        yield pool


def submit(pool: ThreadPoolExecutor, fn: Callable[..., Any], *args: Any) -> Any:
    return pool.submit(fn, *args).result(10)


def by_map(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    (found,) = pool.map(lambda _: fn(), [1])
    return found


def on_commit_patched_submit(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    return pool.submit_on_commit(fn).result(10)


def in_executor(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    async def main() -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, fn)

    return asyncio.run(main())


@pytest.mark.parametrize("way", [submit, by_map, on_commit_patched_submit, in_executor])
def test_the_task_sees_what_the_wrapper_set(
    way: Callable[..., Any], pool: ThreadPoolExecutor, tracer: list[str]
) -> None:
    """And its submitter and the next task do not."""
    TRACE.set("the submitter's")
    assert [way(pool, TRACE.get) for _ in range(3)] == ["trace 0", "trace 1", "trace 2"]
    assert TRACE.get() == "the submitter's"


@pytest.mark.usefixtures("tracer")
def test_the_rest_of_the_context() -> None:
    """A task still has its submitter's variables and language."""
    OTHER.set("the submitter's")
    with ThreadPoolExecutor(1) as pool, translation.override("de"):
        found = submit(pool, lambda: (TRACE.get(), OTHER.get(), translation.get_language()))
    assert found == ("trace 0", "the submitter's", "de")


@pytest.mark.usefixtures("tracer")
def test_connections_and_names(gate: Gate) -> None:
    """A traced task lets go of what it opened, and is called by its own name."""

    def names() -> list[str | None]:
        Entry.objects.count()
        return [found.task for found in all_connections()]

    with ThreadPoolExecutor(1) as pool:
        (name,) = submit(pool, names)
        assert name is not None
        assert name.endswith("names")
        assert all_connections() == ()


@pytest.mark.usefixtures("tracer")
def test_the_name_of_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A log that tells of a task's error calls it by its own name too."""

    def fails() -> None:
        raise LookupError

    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(1) as pool:
        pool.submit(fails)
    (record,) = caplog.records
    assert "fails failed" in record.getMessage()


@pytest.mark.usefixtures("tracer")
def test_one_that_submits_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced `submit` may submit something else too: each has a context."""
    original = Standard.submit
    others: list[Future[Any]] = []

    def submit_two(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        others.append(original(self, OTHER.get))
        return original(self, fn, *args, **kwargs)

    monkeypatch.setattr(Standard, "submit", submit_two)
    OTHER.set("the submitter's")
    with ThreadPoolExecutor(2) as pool:
        assert submit(pool, OTHER.get) == "the submitter's"
        assert others[0].result(10) == "the submitter's"


@pytest.mark.usefixtures("tracer")
def test_one_that_goes_on_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a replaced `submit` comes back to the standard one elsewhere, tasks run in that context."""
    original = Standard.submit

    def elsewhere(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def target() -> None:
            OTHER.set("of that thread")
            made.append(original(self, fn, *args, **kwargs))

        made: list[Future[Any]] = []
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(10)
        return made[0]

    monkeypatch.setattr(Standard, "submit", elsewhere)

    def task() -> tuple[str, int]:
        return OTHER.get(), Entry.objects.count()

    with ThreadPoolExecutor(1) as pool:
        assert submit(pool, task) == ("of that thread", 0)
        assert all_connections() == ()


SENTRY = """
import threading
import sentry_sdk
from sentry_sdk.integrations.threading import ThreadingIntegration
from sentry_sdk.transport import Transport

events = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        events.append(envelope.get_event())

sentry_sdk.init(
    transport=Kept, dsn="http://key@localhost/1", default_integrations=False,
    auto_enabling_integrations=False, integrations=[ThreadingIntegration(propagate_scope=True)],
)
from django_executors import ThreadPoolExecutor

both = threading.Barrier(2)

def task(number):
    sentry_sdk.set_tag("task", number)
    both.wait(20)
    try:
        raise LookupError(number)
    except LookupError:
        sentry_sdk.capture_exception()

for inherit_context in (True, False):
    events.clear()
    with sentry_sdk.isolation_scope(), ThreadPoolExecutor(2, inherit_context=inherit_context) as pool:
        sentry_sdk.set_tag("request", "the submitter's")
        for future in [pool.submit(task, number) for number in (1, 2)]:
            future.result(20)
        sentry_sdk.capture_message("of the request")
    print(*sorted(
        (event.get("message") or event["exception"]["values"][0]["value"], sorted(event["tags"].items()))
        for event in events
    ), sep="\\n")
"""

TAGS = """\
('1', [('request', "the submitter's"), ('task', 1)])
('2', [('request', "the submitter's"), ('task', 2)])
('of the request', [('request', "the submitter's")])
"""


@pytest.mark.usefixtures("tracer")
def test_sentry() -> None:
    """With Sentry's own ThreadingIntegration, each error has its task's tags, the request its own."""
    ended = run_python(SENTRY, settings="tests.settings", warnings="ignore")
    assert (ended.stdout, ended.stderr) == (TAGS * 2, "")


OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
ThreadingInstrumentor().instrument()
tracer = trace.get_tracer("tests")
from django_executors import ThreadPoolExecutor

def task(number):
    with tracer.start_as_current_span(f"task {number}"):
        pass

for inherit_context in (True, False):
    kept.clear()
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        for number in range(2):
            with tracer.start_as_current_span(f"request {number}"):
                pool.submit(task, number)  # and nobody waits for it
    spans = {span.name: span for span in kept.get_finished_spans()}
    for number in range(2):
        parent, request = spans[f"task {number}"].parent, spans[f"request {number}"].context
        print(parent.span_id == request.span_id)
"""


@pytest.mark.usefixtures("tracer")
def test_opentelemetry() -> None:
    """With OpenTelemetry's own ThreadingInstrumentor, each task belongs to its request's trace."""
    ended = run_python(OPENTELEMETRY, settings="tests.settings", warnings="ignore")
    assert (ended.stdout, ended.stderr) == ("True\n" * 4, "")
