"""The tools for tests: what they refuse, what the leak check names, and odd ends for `drain`."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
import unittest
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool

import pytest
from django.db import connections

from django_executors import ThreadPoolExecutor, connection_scope
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline
from tests.projects.testapp.models import Entry
from tests.support.draining import (
    IDLE,
    assert_holds_nothing,
    check_accounting,
    drain_through,
    occupy,
    query,
)
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.leaking import collect, count, leaks, message_of, run, standing
from tests.support.observers import PostgresObserver

drains = pytest.mark.usefixtures("idle_before_and_after")


def a_generator() -> Iterator[int]:
    yield 1


async def an_asynchronous_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("decorator", [run_inline, run_inline(), assert_no_open_connections])
@pytest.mark.parametrize("fn", [a_generator, an_asynchronous_generator])
def test_generator_functions_are_not_decorated(
    decorator: Callable[[object], object], fn: object
) -> None:
    """Their bodies would run when the tool is no longer in force."""
    with pytest.raises(TypeError, match=r"cannot decorate the .*generator function .*a"):
        decorator(fn)


def test_functions_are_decorated_bare_and_called() -> None:
    """And nothing else; by the leak check no class either, whose tests would no longer be found."""

    @assert_no_open_connections
    def bare() -> str:
        return "bare"

    assert bare() == "bare"
    with pytest.raises(TypeError, match="assert_no_open_connections decorates a function, not 5"):
        assert_no_open_connections(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="decorates functions, not <class "):
        assert_no_open_connections()(unittest.TestCase)
    for what in (int, 5):
        with pytest.raises(TypeError, match=r"int|\(5\)"):
            run_inline(what)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", ["1", None, True, -1])
@pytest.mark.parametrize("tool", [drain, assert_no_open_connections])
def test_timeouts_are_numbers_of_seconds(tool: Callable[..., object], value: object) -> None:
    """The message names the argument and says what it may be."""
    error = ValueError if value == -1 else TypeError
    with pytest.raises(error, match=r"timeout must be (a number of|0 or more) seconds, not"):
        tool(timeout=value)


def test_the_mixin_stands_before_the_test_case() -> None:
    """Behind it, nothing that it does would be called."""
    with pytest.raises(TypeError, match=r"class Wrong\(ExecutorTestMixin, TestCase\)"):
        type("Wrong", (unittest.TestCase, ExecutorTestMixin), {})
    base = type("Base", (ExecutorTestMixin, unittest.TestCase), {})
    type("Right", (base,), {})


# What `assert_no_open_connections` says: every connection once, its age, its task, its origin.


@leaks
def test_task_that_still_runs(gate: Gate) -> None:
    """Where it is a worker of this library's, executor and task are named."""

    def write_report() -> None:
        count()
        gate()

    def body() -> None:
        pool.submit(write_report)
        gate.wait_for()

    with ThreadPoolExecutor(1, "reports") as pool:
        said = message_of(body)
        gate.open()
    assert "thread=reports_0 alias=default " in said
    assert re.search(rf" executor=reports task={__name__}\..*write_report age=", said)


@leaks
def test_all_are_named() -> None:
    """The message has a line for each connection, with its age in seconds."""

    def target() -> None:
        for alias in ("default", "other", "sqlite"):
            Entry.objects.using(alias).count()

    def body() -> None:
        run(target, "first")
        collect()
        run(target, "second")

    first, *lines = message_of(body, timeout=0.1).splitlines()
    assert first == "6 database connection(s) left open by other threads:"
    assert {tuple(line.split()[:2]) for line in lines} == {
        (f"thread={name}", f"alias={alias}")
        for name in ("first", "second")
        for alias in ("default", "other", "sqlite")
    }
    assert all(float(age) >= 0.1 for age in re.findall(r" age=([\d.]+)s", "\n".join(lines)))


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start(25)
    yield
    tracemalloc.stop()


@leaks
@pytest.mark.usefixtures("tracing")
def test_the_line_that_opened_it() -> None:
    """While `tracemalloc` is tracing, the message has the line of the test that opened it."""

    def body() -> None:
        run(count)
        collect()

    said = message_of(body)
    assert "  opened at (most recent call last):\n" in said
    code = count.__code__
    line = f'File "{code.co_filename}", line {code.co_firstlineno + 1}\n    Entry.objects.count()\n'
    assert line in said


# `assert_no_open_connections` on Django's pool, and on databases in memory that stay open.


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> Iterator[None]:
    """A new pool of Django's for the alias `pooled`."""
    connections["pooled"].close_pool()
    assert not postgres.left("pooled")
    options = {"min_size": 1, "max_size": 4, "timeout": 10.0}
    monkeypatch.setitem(connections.settings["pooled"], "OPTIONS", {"pool": options})
    run(lambda: connections["pooled"].pool)  # which keeps the wrapper alive that made it
    yield
    connections["pooled"].close()
    connections["pooled"].close_pool()


@leaks
@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize("collected", [False, True])
def test_slot_of_djangos_pool(collected: bool, postgres: PostgresObserver) -> None:
    """A slot that a dead thread took from Django's pool is named once, collected or not."""
    pids: list[int] = []

    def target() -> None:
        connections["pooled"].ensure_connection()
        pids.append(connections["pooled"].connection.info.backend_pid)

    def body() -> None:
        run(target)
        if collected:
            collect()

    said = message_of(body)
    assert said.startswith("1 database connection(s)")
    assert f"thread=orders alias=pooled backend_pid={pids[0]} " in said


@leaks
@pytest.mark.usefixtures("pooled")
def test_slot_that_the_calling_thread_threw_away() -> None:
    """A slot that the calling thread can no longer give back is lost for good: that is a leak."""

    def body() -> None:
        Entry.objects.using("pooled").count()
        del connections["pooled"]
        collect()

    assert "thread=MainThread alias=pooled " in message_of(body)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias `memory`, named as the database of a test run is."""
    name = "file:memory_of_the_leak_detector?mode=memory&cache=shared"
    monkeypatch.setitem(connections.settings, "memory", connections.settings["sqlite"] | {"NAME": name})


def query_memory() -> None:
    with connections["memory"].cursor() as cursor:
        cursor.execute("SELECT 1")


@leaks
@pytest.mark.usefixtures("memory")
def test_in_memory() -> None:
    """A database in memory counts as any other, so that a project without a server sees its leaks."""
    assert "thread=orders alias=memory backend_pid=None " in message_of(lambda: run(query_memory))


@pytest.mark.usefixtures("leaked_before", "memory")
def test_in_memory_that_django_never_closes() -> None:
    """A thread that has closed a database in memory has done its part: Django leaves it open."""
    with (
        ThreadPoolExecutor(1, initializer=query_memory) as pool,
        contextlib.ExitStack() as stack,
        assert_no_open_connections(timeout=0.0),
    ):
        stack.enter_context(standing(connection_scope(query_memory)))
        for future in [pool.submit(query_memory) for _ in range(10)]:
            future.result(10)


# `drain` counts right after what ends oddly: cancelled, failed, dropped, forked.


@drains
def test_cancelled_futures(gate: Gate) -> None:
    """A future that was cancelled while it was queued is no work left."""
    pool = ThreadPoolExecutor(1)
    queued = occupy(pool, gate, queued=4)
    assert [future.cancel() for future in queued[:3]] == [True] * 3
    drain_through(gate)
    assert queued[3].done()
    check_accounting(pool)


@drains
@pytest.mark.parametrize("where", ["outside", "in a callback"])
def test_shutdown_that_cancels(where: str, gate: Gate, postgres: PostgresObserver) -> None:
    """After `shutdown(cancel_futures=True)`, from anywhere, what still runs is all that is left."""
    before, pool = Gate(), ThreadPoolExecutor(1, conn_max_idle=IDLE)

    def cancel(*_: object) -> None:
        pool.shutdown(wait=False, cancel_futures=True)

    def callback(_: object) -> None:
        cancel()
        gate()

    if where == "outside":
        occupy(pool, gate, queued=3)
        cancel()
    else:
        pool.submit(before).add_done_callback(callback)
        for _ in range(3):
            pool.submit(query)
        before.open()
        gate.wait_for()
    drain_through(gate, "busy=1 pending=0")
    assert len(gate.ended) == 1
    assert_holds_nothing(postgres)


@drains
def test_failed_initializer(gate: Gate, postgres: PostgresObserver) -> None:
    """Tasks whose initializer failed are no work left; while it ran, they were."""

    def initializer() -> None:
        query()
        gate()
        raise LookupError("of the initializer")

    pool = ThreadPoolExecutor(1, initializer=initializer)
    futures = [pool.submit(query) for _ in range(3)]
    gate.wait_for()
    drain_through(gate)
    for future in futures:
        assert isinstance(future.exception(0), BrokenThreadPool)
    assert_holds_nothing(postgres)


@drains
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_dropped_executor(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """An executor that nobody refers to any more counts until its workers are done."""
    pool = ThreadPoolExecutor(2, conn_max_idle=conn_max_idle)
    futures = [*(pool.submit(gate) for _ in range(2)), *(pool.submit(query) for _ in range(3))]
    gate.wait_for(2)
    del pool
    drain_through(gate, "busy=2 pending=3")
    assert all(future.done() for future in futures)
    assert_holds_nothing(postgres)


@drains
def test_fork_with_work_in_progress(gate: Gate) -> None:
    """In a forked child nothing is left to do: the threads are the parent's, which counts on."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    (queued,) = occupy(pool, gate, queued=1)

    def child() -> None:
        drain(0)
        check_accounting(ThreadPoolExecutor(1))
        drain(0)

    assert fork(child) == (0, "")
    drain_through(gate)
    assert queued.done()
    check_accounting(pool)
