"""The thread pool: its bound, asyncio, and tools that replace the standard class's `submit`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import logging
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Standard
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, TypeVar

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction
from django.utils import translation

from django_executors import (
    ExecutorError,
    QueueFull,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from django_executors.testing import run_inline
from tests.projects.testapp.models import Entry
from tests.support.draining import query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.shutting import beside, left
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

# `max_pending`: at most so many tasks are submitted and have not begun.


def full(gate: Gate, **options: Any) -> ThreadPoolExecutor:
    """Return a pool whose one worker is busy and whose queue of two is full."""
    pool = ThreadPoolExecutor(1, max_pending=2, **options)
    pool.submit(gate)
    gate.wait_for()
    for _ in range(2):
        pool.submit(int)
    return pool


def blocked(number: int) -> bool:
    """Wait until that many submitters wait for room; return whether they do."""
    return wait_until(_count_blocked, lambda count: count == number, within=20) == number


def _count_blocked() -> int:
    idents = {thread.ident for thread in threading.enumerate() if thread.name.startswith("submitter")}
    return sum(_waits(frame) for ident, frame in sys._current_frames().items() if ident in idents)


def _waits(frame: Any) -> bool:
    """Return whether this thread waits in a condition of ours."""
    is_a_wait = (frame.f_code.co_filename, frame.f_code.co_name) == (threading.__file__, "wait")
    return is_a_wait and "django_executors" in frame.f_back.f_code.co_filename


@pytest.fixture
def submitter() -> Iterator[concurrent.futures.Executor]:
    """Four threads beside, by the name of `submitter`."""
    with concurrent.futures.ThreadPoolExecutor(4, "submitter") as pool:
        yield pool


def test_raises(gate: Gate) -> None:
    """With `when_full="raise"` a full queue refuses, with the numbers, until a task has begun."""
    pool = full(gate, when_full="raise")
    with pytest.raises(QueueFull, match=r"workers=1 busy=1 pending=2$") as caught:
        pool.submit(int)
    assert isinstance(caught.value, ExecutorError)
    assert isinstance(caught.value, queue.Full)
    assert pool.stats().rejected == 1
    gate.open()
    assert wait_until(pool.stats, lambda stats: stats.pending == 0, within=20).pending == 0
    assert pool.submit(int).result(20) == 0
    assert (pool.stats().rejected, pool.stats().submitted) == (1, 4)
    pool.shutdown()


def test_blocks(gate: Gate, submitter: concurrent.futures.Executor) -> None:
    """By default `submit` waits until a task has begun or was cancelled, which gives one place once."""
    pool = ThreadPoolExecutor(1, max_pending=2)
    pool.submit(gate)
    gate.wait_for()
    pending = [pool.submit(int) for _ in range(2)]
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert blocked(2)
    for _ in range(3):
        assert pending[0].cancel()
    done, waiting = concurrent.futures.wait(submitting, 20, return_when="FIRST_COMPLETED")
    assert (len(done), len(waiting)) == (1, 1)
    assert blocked(1)
    assert (pool.stats().pending, pool.stats().cancelled) == (2, 1)
    gate.open()
    assert all(future.result(20).result(20) == 0 for future in submitting)
    pool.shutdown()
    assert pool.stats().rejected == 0


def test_a_callback_that_exits_as_its_future_is_cancelled(gate: Gate) -> None:
    """Whoever cancels gets the SystemExit; who waits hears of it, and the place is free."""
    with ThreadPoolExecutor(1, max_pending=1, when_full="raise") as pool:
        pool.submit(gate)
        gate.wait_for()
        future = pool.submit(int)
        future.add_done_callback(lambda _: sys.exit())
        with pytest.raises(SystemExit):
            future.cancel()
        assert concurrent.futures.wait([future], 20).done == {future}
        assert (pool.stats().pending, pool.stats().cancelled) == (0, 1)
        pool.submit(int)
        gate.open()


@pytest.mark.parametrize("options", [{}, {"cancel_futures": True}, {"timeout": 20}], ids=repr)
def test_shutdown_wakes_up(
    options: dict[str, Any], gate: Gate, submitter: concurrent.futures.Executor
) -> None:
    """Submitters who wait hear the standard error when the pool is shut down, and none gets in."""
    pool = full(gate)
    submitting = [submitter.submit(pool.submit, int) for _ in range(4)]
    assert blocked(4)
    with beside(lambda: pool.shutdown(**options)):
        for future in submitting:
            with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
                future.result(20)
        assert pool.stats().busy == 1  # nothing but the shutdown has woken them up
        gate.open()
    assert pool.stats().submitted == 3


def test_broken_pool(
    gate: Gate, submitter: concurrent.futures.Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """When an initializer fails, all who wait hear of it; what was cancelled before stays so."""

    def fails() -> None:
        gate()
        raise LookupError

    pool = ThreadPoolExecutor(1, initializer=fails, max_pending=3)
    pending = [pool.submit(int) for _ in range(3)]
    gate.wait_for()
    assert pending[0].cancel()
    pending.append(pool.submit(int))
    submitting = [submitter.submit(pool.submit, int) for _ in range(2)]
    assert blocked(2)
    gate.open()
    for future in [*submitting, *pending[1:]]:
        with pytest.raises(BrokenThreadPool):
            future.result(20)
    assert concurrent.futures.wait(pending, 20).not_done == set()
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.failed, stats.pending) == (4, 1, 3, 0)
    del future, submitting, pending
    assert not [each for each in caplog.records if each.name.startswith("django_executors")]


def test_in_a_task(gate: Gate) -> None:
    """A worker never waits for room in its own pool: it gets `QueueFull` instead."""
    pool = ThreadPoolExecutor(2, max_pending=1)
    pool.submit(gate)
    gate.wait_for()

    def submit_two() -> None:
        pool.submit(int)
        with pytest.raises(QueueFull, match="a worker of its own would wait for itself"):
            pool.submit(int)

    pool.submit(submit_two).result(20)
    gate.open()
    pool.shutdown()
    assert (pool.stats().submitted, pool.stats().rejected) == (3, 1)


def test_in_an_event_loop(gate: Gate) -> None:
    """Nor does a thread in which an event loop runs."""
    pool = full(gate)

    async def submit() -> None:
        with pytest.raises(QueueFull, match="waiting would block the event loop"):
            pool.submit(int)

    asyncio.run(submit())
    gate.open()
    pool.shutdown()


def test_in_an_event_loop_that_may_be_blocked(
    gate: Gate, submitter: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook, whose cells run in a loop's thread and may block it, it waits as asked."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    pool = full(gate)

    async def cell() -> int:
        return pool.submit(int, 7).result(20)

    submitting = submitter.submit(asyncio.run, cell())
    assert blocked(1)
    gate.open()
    assert submitting.result(20) == 7
    pool.shutdown()
    assert pool.stats().rejected == 0


def test_many_submitters() -> None:
    """16 submitters: never more than 10 pending, and each task runs exactly once."""
    count, submitters = 800, 16
    done: list[int] = []
    over: list[int] = []

    def submit(first: int) -> None:
        for number in range(first, count, submitters):
            pool.submit(done.append, number)
            if not 0 <= (pending := pool.stats().pending) <= 10:
                over.append(pending)

    pool = ThreadPoolExecutor(4, max_pending=10)
    with concurrent.futures.ThreadPoolExecutor(submitters) as threads:
        list(threads.map(submit, range(submitters)))
    pool.shutdown()
    assert over == []
    assert sorted(done) == list(range(count))
    assert (pool.stats().submitted, pool.stats().completed, pool.stats().pending) == (count, count, 0)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_pending": 0}, ValueError, "max_pending must be 1 or more, or None, not 0"),
        ({"max_pending": 1.5}, TypeError, "max_pending must be an int or None, not 1.5"),
        ({"max_pending": True}, TypeError, "max_pending must be an int or None, not True"),
        ({"when_full": "wait"}, ValueError, "when_full must be 'block' or 'raise', not 'wait'"),
        (
            {"when_full": "raise"},
            ValueError,
            "when_full='raise' needs max_pending, or the queue is never full",
        ),
    ],
)
def test_wrong_values(options: dict[str, Any], error: type[Exception], said: str) -> None:
    """A wrong value is refused by name, with what may be there."""
    with pytest.raises(error, match=f"^{said}$"):
        ThreadPoolExecutor(1, **options)


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits hears it, the task is not run later, and its place is free when there are threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    pool = ThreadPoolExecutor(2, max_pending=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                pool.submit(done.append, "refused")
    pool.submit(done.append, "submitted").result(20)
    pool.shutdown()
    assert done == ["submitted"]
    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.completed, stats.pending) == (4, 3, 1, 0)


def test_no_further_thread_can_be_started(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker is there, it runs what is submitted, and who submits does not hear of it."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with ThreadPoolExecutor(2) as pool:
        pool.submit(gate)
        gate.wait_for()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        future = pool.submit(int)
        gate.open()
        assert future.result(20) == 0


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


@contextlib.contextmanager
def nothing_left(postgres: PostgresObserver) -> Iterator[None]:
    yield
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
def test_to_thread(postgres: PostgresObserver) -> None:
    """`asyncio.to_thread` on our pool as the loop's default gives the results, and nothing is left."""
    names = [f"entry {number}" for number in range(20)]

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
        with nothing_left(postgres):
            return await asyncio.gather(*(asyncio.to_thread(add, name) for name in names))

    assert run(main()) == names
    assert Entry.objects.count() == 20


def test_name_of_the_task() -> None:
    """`all_connections()` calls a task of `asyncio.to_thread` by its function's name."""

    def names() -> list[tuple[str | None, str | None]]:
        Entry.objects.count()
        return [(info.executor, info.task) for info in all_connections()]

    async def main() -> list[tuple[str | None, str | None]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "of the loop"))
        return [*await asyncio.to_thread(names), *await asyncio.to_thread(functools.partial(names))]

    assert run(main()) == [("of the loop", f"{__name__}.test_name_of_the_task.<locals>.names")] * 2


def test_context() -> None:
    """The submitter's variables and language reach its tasks; in a standard pool they do not."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="of nobody")

    def task() -> tuple[str, str | None]:
        return variable.get(), translation.get_language()

    async def main(pool: Standard) -> list[tuple[str, str | None]]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        variable.set("of the caller")
        with translation.override("de"):
            return [await loop.run_in_executor(None, task), await asyncio.to_thread(task)]

    ours, to_thread = run(main(ThreadPoolExecutor(1)))
    assert (ours, to_thread[0]) == (("of the caller", "de"), "of the caller")
    assert run(main(Standard(1)))[0] == ("of nobody", "en-us")


def test_wrap_future(postgres: PostgresObserver) -> None:
    """`asyncio.wrap_future` awaits a future of ours: its result or its exception."""

    def fails() -> None:
        Entry.objects.count()
        raise LookupError("of the task")

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool, nothing_left(postgres):
            assert await asyncio.wrap_future(pool.submit(add, "a")) == "a"
            with pytest.raises(LookupError, match="of the task"):
                await asyncio.wrap_future(pool.submit(fails))

    run(main())


def test_end_of_the_loop(postgres: PostgresObserver) -> None:
    """`asyncio.run` waits for all that its default executor has to do, and leaves no thread."""
    pool = ThreadPoolExecutor(2, "of the loop")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        for number in range(11):
            loop.run_in_executor(None, add, str(number))

    with nothing_left(postgres):
        run(main())
    assert not [t for t in threading.enumerate() if t.name.startswith("of the loop")]
    assert Entry.objects.count() == 11
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        run(main())


# Cancelling the code that awaits a task cancels the task if it has not begun, and not if it has.


Task = Callable[[], object]
#: Submits a task, and returns what is to be awaited.
Way = Callable[[ThreadPoolExecutor, Task], Awaitable[Awaitable[object]]]


async def by_run_in_executor(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    return asyncio.get_running_loop().run_in_executor(pool, task)


async def by_to_thread(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    asyncio.get_running_loop().set_default_executor(pool)
    return asyncio.to_thread(task)


async def on_commit(pool: ThreadPoolExecutor, task: Task) -> Awaitable[object]:
    submit = connection_scope(transaction.atomic(pool.submit_on_commit))
    return asyncio.wrap_future(await sync_to_async(submit)(task))


async def cancel(awaitable: Awaitable[object], pool: ThreadPoolExecutor, state: str) -> None:
    """Cancel the code that waits, when its task is "pending", or "busy"."""

    async def wait_for() -> object:
        return await awaitable

    waiting = asyncio.ensure_future(wait_for())
    with ThreadPoolExecutor(1) as other:
        found = other.submit(wait_until, lambda: getattr(pool.stats(), state), within=20)
        assert await asyncio.wrap_future(found) == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("way", [by_run_in_executor, by_to_thread, on_commit])
@pytest.mark.usefixtures("idle_before_and_after")
def test_not_begun(way: Way, gate: Gate, postgres: PostgresObserver) -> None:
    """It is cancelled when its awaiter has heard of it, and never runs."""
    ran: list[str] = []

    async def main() -> None:
        pool.submit(gate)
        gate.wait_for()
        await cancel(await way(pool, lambda: ran.append("the task")), pool, "pending")
        stats = pool.stats()
        assert (stats.cancelled, stats.pending, stats.busy) == (1, 0, 1)
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert ran == []
    assert (pool.stats().completed, pool.stats().failed) == (1, 0)


@pytest.mark.parametrize("way", [by_to_thread, on_commit])
@pytest.mark.usefixtures("idle_before_and_after")
def test_begun(
    way: Way, gate: Gate, postgres: PostgresObserver, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs to its end, and lets go then; nobody hears of its error, of which docs/async.md warns."""

    def fails() -> None:
        query()
        gate()
        raise LookupError("of the task")

    async def main() -> None:
        await cancel(await way(pool, fails), pool, "busy")
        assert pool.stats().busy == 1
        gate.open()

    with nothing_left(postgres), ThreadPoolExecutor(1) as pool:
        run(main())
    assert len(gate.ended) == 1
    assert (pool.stats().failed, pool.stats().cancelled) == (1, 0)
    assert caplog.records == []


# Tools that replace the standard class's `submit`: a task sees what they set in the worker.


TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")
OTHER: contextvars.ContextVar[str] = contextvars.ContextVar("other", default="none")


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each task a trace of its own, as Sentry and OpenTelemetry do."""
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


@pytest.mark.usefixtures("tracer")
@pytest.mark.parametrize("inherit_context", [True, False])
def test_the_task_sees_what_the_wrapper_set(inherit_context: bool) -> None:
    """However it is submitted, and inline; its submitter and the next task do not see it."""

    async def in_executor() -> str:
        return await asyncio.get_running_loop().run_in_executor(pool, TRACE.get)

    TRACE.set("the submitter's")
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        assert pool.submit(TRACE.get).result(20) == "trace 0"
        assert list(pool.map(lambda _: TRACE.get(), range(2))) == ["trace 1", "trace 2"]
        assert pool.submit_on_commit(TRACE.get).result(20) == "trace 3"
        assert asyncio.run(in_executor()) == "trace 4"
        with run_inline():
            assert pool.submit(TRACE.get).result(0) == "trace 5"
            assert list(pool.map(lambda _: TRACE.get(), range(2))) == ["trace 6", "trace 7"]
    assert TRACE.get() == "the submitter's"


def test_cancelled_by_way_of_a_replaced_submit(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The future that the standard class has made is cancelled with the one that `submit` returns."""
    original = Standard.submit
    made: list[concurrent.futures.Future[Any]] = []

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        made.append(original(self, fn, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(Standard, "submit", submit)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        gate.wait_for()
        future = pool.submit(abs, -1)
        assert future is not made[-1]
        assert future.cancel()
        assert made[-1].cancelled()
        assert concurrent.futures.wait(made[1:], 20).done == {made[-1]}
        gate.open()


@pytest.mark.usefixtures("tracer")
def test_the_rest_of_a_traced_task(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """It has its submitter's context, lets go of its connection, and is called by its own name."""

    def task() -> tuple[str, str, str | None, str | None]:
        Entry.objects.count()
        (name,) = (found.task for found in all_connections())
        return TRACE.get(), OTHER.get(), translation.get_language(), name

    def fails() -> None:
        raise LookupError

    OTHER.set("the submitter's")
    with ThreadPoolExecutor(1) as pool, translation.override("de"):
        *found, name = pool.submit(task).result(20)
        assert all_connections() == ()
        assert found == ["trace 0", "the submitter's", "de"]
        assert name is not None
        assert name.endswith("<locals>.task")
        with caplog.at_level(logging.ERROR):
            pool.submit(fails)
            pool.submit(gate)
            gate.wait_for()
            pool.submit(query)
            pool.shutdown(timeout=0)
        gate.open()
    assert [each for each in caplog.messages if "fails failed" in each]
    assert left(caplog)[0].endswith("gates.Gate x1) not_run=1 (tests.support.draining.query x1)")


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
        assert pool.submit(OTHER.get).result(20) == "the submitter's"
        assert others[0].result(20) == "the submitter's"


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
        thread.join(20)
        return made[0]

    monkeypatch.setattr(Standard, "submit", elsewhere)

    def task() -> tuple[str, int]:
        return OTHER.get(), Entry.objects.count()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(20) == ("of that thread", 0)
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


@pytest.mark.slow
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
        print(spans[f"task {number}"].parent.span_id == spans[f"request {number}"].context.span_id)
"""


@pytest.mark.slow
def test_opentelemetry() -> None:
    """With OpenTelemetry's own ThreadingInstrumentor, each task belongs to its request's trace."""
    ended = run_python(OPENTELEMETRY, settings="tests.settings", warnings="ignore")
    assert (ended.stdout, ended.stderr) == ("True\n" * 4, "")


INTERRUPTED = """
import random, signal, threading
from django_executors import ThreadPoolExecutor

class Alarm(Exception):
    pass

def handle(*_):
    if armed:
        raise Alarm

armed = False
signal.signal(signal.SIGALRM, handle)
for seed in range(40):
    random.seed(seed)
    with ThreadPoolExecutor(1, max_pending=1000) as pool:
        pool.submit(int).result(20)
        for _ in range(40):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 3e-4))
                try:
                    while True:
                        pool.submit(int)
                finally:
                    armed = False
            except Alarm:
                pass
        go_on = threading.Event()
        pool.submit(go_on.wait)
        for _ in range(1000):  # for ever, if a place is lost
            pool.submit(int)
        go_on.set()
    assert pool.stats().pending == 0, pool.stats()
print("all ended")
"""


@pytest.mark.slow
def test_signals_while_submitting() -> None:
    """A signal's handler that raises, anywhere in `submit`, leaves no lock taken and no place lost."""
    # Not measured: a tracer is Python's to interrupt, at every line, where no signal comes otherwise.
    done = run_python(INTERRUPTED, settings=None, COVERAGE_PROCESS_CONFIG="", COVERAGE_PROCESS_START="")
    assert (done.stdout, done.stderr) == ("all ended\n", "")
