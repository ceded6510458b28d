"""What the tools for tests refuse, and how they say it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import tracemalloc
import unittest
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections

from django_executors import ThreadPoolExecutor, connection_scope
from django_executors.execution import inline
from django_executors.lifecycle.leaks import Watch
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline
from tests.connections.test_fork import fork
from tests.projects.drain_project.run import TEST_DATABASES
from tests.projects.testapp.models import Entry
from tests.support.draining import (
    IDLE,
    assert_holds_nothing,
    check_accounting,
    drain_through,
    is_idle,
    occupy,
    query,
)
from tests.support.gates import Gate
from tests.support.leaking import WORKERS, collect, count, leaks, message_of, run, standing
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import ROOT, environment
from tests.support.waiting import wait_until


def a_generator() -> Iterator[int]:
    yield len(inline.switched_on)


async def an_asynchronous_generator() -> AsyncIterator[int]:
    yield len(inline.switched_on)


@pytest.mark.parametrize("decorator", [run_inline, run_inline(), assert_no_open_connections])
@pytest.mark.parametrize("fn", [a_generator, an_asynchronous_generator])
def test_generator_functions_are_not_decorated(
    decorator: Callable[[object], object], fn: object
) -> None:
    """Their bodies would run when the tool is no longer in force."""
    with pytest.raises(TypeError, match=r"cannot decorate the .*generator function .*a"):
        decorator(fn)


def test_the_leak_check_decorates_bare_and_called() -> None:
    """As a context manager's class would, and as a function."""

    @assert_no_open_connections
    def bare() -> str:
        return "bare"

    @assert_no_open_connections(timeout=0.5)
    def called() -> str:
        return "called"

    assert (bare(), called()) == ("bare", "called")
    with pytest.raises(TypeError, match="assert_no_open_connections decorates a function, not 5"):
        assert_no_open_connections(5)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("value", "error"), [("1", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError)]
)
@pytest.mark.parametrize("tool", [drain, assert_no_open_connections])
def test_timeouts_are_numbers_of_seconds(
    tool: Callable[..., object], value: object, error: type[Exception]
) -> None:
    """The message names the argument and says what it may be."""
    with pytest.raises(error, match=r"timeout must be (a number of|0 or more) seconds, not"):
        tool(timeout=value)


def test_the_mixin_stands_before_the_test_case() -> None:
    """Behind it, nothing that it does would be called."""
    with pytest.raises(TypeError, match=r"class Wrong\(ExecutorTestMixin, TestCase\)"):
        type("Wrong", (unittest.TestCase, ExecutorTestMixin), {})
    base = type("Base", (ExecutorTestMixin, unittest.TestCase), {})
    type("Right", (base,), {})


def test_the_orm_thread_of_a_coroutine_is_the_tests_own() -> None:
    """An asynchronous test runs in an event loop's thread, and its ORM in the test's."""

    @assert_no_open_connections(timeout=0)
    async def count() -> int:
        return await Entry.objects.acount()

    connection.close()
    assert async_to_sync(count)() == 0
    assert connection.connection is not None


# What `assert_no_open_connections` says: every connection once, its age, its task, its origin.


@leaks
def test_task_that_still_runs() -> None:
    """Where it is a worker of this library's, executor and task are named."""
    here, go_on = threading.Event(), threading.Event()

    def write_report() -> None:
        count()
        here.set()
        go_on.wait(30)

    def body() -> None:
        pool.submit(write_report)
        assert here.wait(10)

    with ThreadPoolExecutor(1, "reports") as pool:
        said = message_of(body)
        go_on.set()
    assert "thread=reports_0 alias=default " in said
    assert f" executor=reports task={__name__}." in said
    assert "write_report age=" in said


@leaks
def test_all_are_named() -> None:
    """The message has a line for each connection."""

    def target() -> None:
        for alias in ("default", "other", "sqlite"):
            Entry.objects.using(alias).count()

    def body() -> None:
        run(target, "first")
        collect()
        run(target, "second")

    first, *lines = message_of(body).splitlines()
    assert first == "6 database connection(s) left open by other threads:"
    assert {tuple(line.split()[:2]) for line in lines} == {
        (f"thread={name}", f"alias={alias}")
        for name in ("first", "second")
        for alias in ("default", "other", "sqlite")
    }


@leaks
def test_age() -> None:
    """The age is that of the connection, in seconds, when the block gave up waiting."""
    found = re.search(r" age=([\d.]+)s", message_of(lambda: run(count), timeout=0.3))
    assert found is not None
    assert 0.3 <= float(found[1]) < 10


@leaks
def test_found_in_the_middle_of_a_collection() -> None:
    """Whenever it looks, what a collection is just taking away is neither missed nor told twice."""
    seen: list[int] = []

    def look(_: object) -> None:
        seen.append(len(watch.leaks()))

    def target() -> None:
        count()
        references.append(weakref.ref(connections["default"], look))

    references: list[object] = []
    watch = Watch()
    for _ in range(WORKERS):
        run(target)
    assert len(watch.leaks()) == WORKERS
    collect()
    assert len(watch.leaks()) == WORKERS
    assert seen == [WORKERS] * WORKERS


@leaks
def test_watching_keeps_nothing_open(postgres: PostgresObserver) -> None:
    """A wrapper that a task threw away, and the collector took, has closed: no record holds it open."""

    def task() -> set[int]:
        count()
        del connections["default"]
        collect()
        return postgres.left()

    assert ThreadPoolExecutor(1).submit(task).result(30) == set()


# Where it was opened.


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start(25)
    yield
    tracemalloc.stop()


THE_LINE = (
    f'File "{count.__code__.co_filename}", line {count.__code__.co_firstlineno + 1}\n'
    "    Entry.objects.count()\n"
)


@leaks
@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("collected", [False, True])
def test_the_line_that_opened_it(collected: bool) -> None:
    """While `tracemalloc` is tracing, the message has the line of the test that opened it."""

    def body() -> None:
        run(count)
        if collected:
            collect()

    said = message_of(body)
    assert "  opened at (most recent call last):\n" in said
    assert THE_LINE in said


@leaks
def test_without_tracing() -> None:
    """Without, it says nothing of that."""
    assert not tracemalloc.is_tracing()
    said = message_of(lambda: run(count))
    assert "opened at" not in said
    assert "File" not in said


# `assert_no_open_connections` on Django's pool, and on databases in memory that stay open.


def count_pooled() -> None:
    Entry.objects.using("pooled").count()


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> Iterator[dict[str, Any]]:
    """The options of a new pool of Django's for the alias `pooled`; a test may change them first."""
    connections["pooled"].close_pool()
    assert not postgres.left("pooled")
    options: dict[str, Any] = {"min_size": 1, "max_size": WORKERS, "timeout": 10.0}
    monkeypatch.setitem(connections.settings["pooled"], "OPTIONS", {"pool": options})
    yield options
    connections["pooled"].close()
    connections["pooled"].close_pool()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias `memory`, named as the database of a test run is."""
    name = "file:memory_of_the_leak_detector?mode=memory&cache=shared"
    monkeypatch.setitem(connections.settings, "memory", connections.settings["sqlite"] | {"NAME": name})


# Django's pool


@leaks
@pytest.mark.parametrize("collected", [False, True])
def test_slot_of_djangos_pool(
    collected: bool, pooled: dict[str, Any], postgres: PostgresObserver
) -> None:
    """A slot that a dead thread took from Django's pool is named once, collected or not."""
    assert connections["pooled"].pool  # which keeps the wrapper alive that made it
    pids: list[int] = []

    def target() -> None:
        connections["pooled"].ensure_connection()
        pids.append(connections["pooled"].connection.info.backend_pid)
        assert pids[0] in postgres.backends("pooled")

    def body() -> None:
        run(target)
        if collected:
            collect()

    said = message_of(body)
    assert said.startswith("1 database connection(s)")
    assert f"thread=orders alias=pooled backend_pid={pids[0]} " in said


@leaks
def test_slot_that_the_calling_thread_threw_away(pooled: dict[str, Any]) -> None:
    """A slot that the calling thread can no longer give back is lost for good: that is a leak."""
    run(lambda: connections["pooled"].pool)

    def body() -> None:
        count_pooled()
        del connections["pooled"]
        collect()

    assert "thread=MainThread alias=pooled " in message_of(body)


def test_djangos_pool_while_it_grows(pooled: dict[str, Any]) -> None:
    """Django's pool may open connections of its own accord meanwhile, up to its size."""
    together = threading.Barrier(WORKERS)

    def task() -> None:
        count_pooled()
        together.wait(10)

    with assert_no_open_connections():
        pool = ThreadPoolExecutor(WORKERS)
        for future in [pool.submit(task) for _ in range(WORKERS)]:
            future.result(10)
    assert connections["pooled"].pool.get_stats()["pool_size"] == WORKERS


def test_djangos_pool_that_fills_slowly(pooled: dict[str, Any]) -> None:
    """What it is still connecting when the block ends is nobody's leak."""
    go_on = threading.Event()

    class OneThenSlow(psycopg.Connection[Any]):
        first = threading.Lock()

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            if not cls.first.acquire(blocking=False):
                go_on.wait(30)
            return super().connect(*args, **kwargs)

    pooled |= {"min_size": WORKERS, "connection_class": OneThenSlow}
    try:
        with assert_no_open_connections(timeout=0.0):
            ThreadPoolExecutor(1).submit(count_pooled).result(10)
    finally:
        go_on.set()


@pytest.mark.parametrize("how", ["unopened", "closed"])
def test_djangos_pool_that_is_not_open(how: str, pooled: dict[str, Any]) -> None:
    """A pool that has been made and not opened, or that has been closed, has lost nothing."""
    with assert_no_open_connections(timeout=0.0):
        pool = connections["pooled"].pool
        if how == "closed":
            pool.open(wait=True)
            pool.close()


def test_djangos_pool_that_was_replaced(pooled: dict[str, Any]) -> None:
    """A connection that outlived its pool may come back in the block."""
    count_pooled()
    connections["pooled"].close_pool()
    with assert_no_open_connections(timeout=0.0):
        connections["pooled"].close()


# In memory


@leaks
@pytest.mark.usefixtures("memory")
def test_in_memory() -> None:
    """A database in memory counts as any other, so that a project without a server sees its leaks."""
    assert "thread=orders alias=memory backend_pid=None " in message_of(
        lambda: run(lambda: connections["memory"].ensure_connection())
    )


@leaks
@pytest.mark.usefixtures("memory")
def test_in_memory_opened_again() -> None:
    """A database in memory that was closed, and is then opened anew, counts again."""

    def target() -> None:
        wrapper: Any = connections["memory"]
        wrapper.ensure_connection()
        wrapper.close()
        wrapper.connection.close()
        wrapper.connection = None
        wrapper.ensure_connection()

    assert "thread=orders alias=memory " in message_of(lambda: run(target))


@pytest.mark.usefixtures("leaked_before", "memory")
@pytest.mark.parametrize("kind", ["closed", "scope", "task", "queued tasks", "initializer"])
def test_in_memory_that_django_never_closes(kind: str, conn_max_age: int | None) -> None:
    """A thread that has closed a database in memory has done its part: Django leaves it open."""

    def query() -> None:
        with connections["memory"].cursor() as cursor:
            cursor.execute("SELECT 1")

    def closed() -> None:
        query()
        connections.close_all()

    with contextlib.ExitStack() as stack, assert_no_open_connections(timeout=0.0):
        if kind == "closed":
            stack.enter_context(standing(closed))
        elif kind == "scope":
            stack.enter_context(standing(connection_scope(query)))
        else:
            initializer = query if kind == "initializer" else None
            pool = stack.enter_context(ThreadPoolExecutor(1, initializer=initializer))
            for future in [pool.submit(query) for _ in range(10 if kind == "queued tasks" else 1)]:
                future.result(10)


# `drain` counts right after what ends oddly: cancelled, failed, dropped, forked.


@pytest.mark.usefixtures("idle_before_and_after")
def test_cancelled_futures(gate: Gate) -> None:
    """A future that was cancelled while it was queued is no work left."""
    pool = ThreadPoolExecutor(1)
    queued = occupy(pool, gate, queued=4)
    assert [future.cancel() for future in queued[:3]] == [True] * 3
    drain_through(gate)
    assert queued[3].done()
    check_accounting(pool)


def cancel_outside(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    pool.shutdown(wait=False, cancel_futures=True)


def cancel_in_a_task(pool: ThreadPoolExecutor, gate: Gate) -> None:
    ready = threading.Event()

    def task() -> None:
        assert ready.wait(10)
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    pool.submit(task)
    for _ in range(3):
        pool.submit(query)
    ready.set()
    gate.wait_for()


def cancel_in_a_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    before = Gate()

    def callback(_: object) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    pool.submit(before).add_done_callback(callback)
    for _ in range(3):
        pool.submit(query)
    before.open()
    gate.wait_for()


def cancel_in_another_pools_task(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    other = ThreadPoolExecutor(1)
    other.submit(pool.shutdown, wait=False, cancel_futures=True).result(10)


def cancel_in_another_pools_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    occupy(pool, gate, queued=3)
    before, done, other = Gate(), threading.Event(), ThreadPoolExecutor(1)

    def callback(_: object) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        done.set()

    other.submit(before).add_done_callback(callback)
    before.open()
    assert done.wait(10)
    check_accounting_beside(other)


def check_accounting_beside(other: ThreadPoolExecutor) -> None:
    """The other pool's worker goes on to its next task, while the first pool is busy."""
    assert other.submit(query).result(10)


CANCELLED = [
    cancel_outside,
    cancel_in_a_task,
    cancel_in_a_callback,
    cancel_in_another_pools_task,
    cancel_in_another_pools_callback,
]


@pytest.mark.parametrize("cancel", CANCELLED, ids=lambda cancel: cancel.__name__)
@pytest.mark.usefixtures("idle_before_and_after")
def test_shutdown_that_cancels(
    cancel: Callable[[ThreadPoolExecutor, Gate], None], gate: Gate, postgres: PostgresObserver
) -> None:
    """After `shutdown(cancel_futures=True)`, from anywhere, what still runs is all that is left."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    cancel(pool, gate)
    wait_until(is_idle, within=0.05)  # the other pool's worker, if there is one, becomes idle
    drain_through(gate, "busy=1 pending=0")
    assert len(gate.ended) == 1
    assert_holds_nothing(postgres)


@pytest.mark.usefixtures("idle_before_and_after")
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


def end_worker(pool: ThreadPoolExecutor) -> None:
    """Have a callback end one worker of this pool."""
    before, ended = Gate(), threading.Event()
    threads: list[threading.Thread] = []

    def callback(_: object) -> None:
        query()
        threads.append(threading.current_thread())
        ended.set()
        raise SystemExit

    pool.submit(before).add_done_callback(callback)
    before.open()
    assert ended.wait(10)
    threads[0].join(10)


@pytest.mark.usefixtures("idle_before_and_after")
def test_worker_that_a_callback_ended(gate: Gate, postgres: PostgresObserver) -> None:
    """A callback that ends its worker has ended: the other workers count on, and it does not."""
    pool = ThreadPoolExecutor(3)
    pool.submit(gate)
    gate.wait_for()
    end_worker(pool)
    drain_through(gate, "busy=1 pending=0")
    assert_holds_nothing(postgres)
    check_accounting(pool)


@pytest.mark.usefixtures("idle_before_and_after")
def test_tasks_that_no_worker_will_take() -> None:
    """Where callbacks have ended all workers, as in the standard pool, it says what is queued."""
    pool = ThreadPoolExecutor(1)
    end_worker(pool)
    queued = pool.submit(query)
    with pytest.raises(TimeoutError, match=r"busy=0 pending=1 tasks=$"):
        drain(0)
    pool.shutdown(wait=False, cancel_futures=True)
    drain()
    assert queued.cancelled()


@pytest.mark.usefixtures("idle_before_and_after")
def test_worker_with_another_name(gate: Gate) -> None:
    """A task may give its thread another name: the worker lives on, and counts."""
    before, pool = Gate(), ThreadPoolExecutor(1)

    def task() -> None:
        threading.current_thread().name = "of the task"
        before()

    pool.submit(task).add_done_callback(gate)
    before.open()
    gate.wait_for()
    drain_through(gate)
    check_accounting(pool)


@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
@pytest.mark.usefixtures("idle_before_and_after")
def test_dropped_executor(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """An executor that nobody refers to any more counts until its workers are done."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(2, conn_max_idle=conn_max_idle)
    assert pool is not None
    futures: list[Future[Any]] = [pool.submit(gate) for _ in range(2)]
    futures += [pool.submit(query) for _ in range(3)]
    gate.wait_for(2)
    pool = None
    drain_through(gate, "busy=2 pending=3")
    assert all(future.done() for future in futures)
    assert_holds_nothing(postgres)


@pytest.mark.usefixtures("idle_before_and_after")
def test_fork_with_work_in_progress(gate: Gate) -> None:
    """In a forked child nothing is left to do: the threads are the parent's, which counts on."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    idle = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    idle.submit(query).result(10)

    def task() -> None:
        query()
        gate()

    pool.submit(task)
    gate.wait_for()
    queued = pool.submit(query)

    def child() -> None:
        drain(0)
        check_accounting(ThreadPoolExecutor(1))
        drain(0)

    assert fork(child) == (0, "")
    drain_through(gate)
    assert queued.done()
    for one in (pool, idle):
        check_accounting(one)


@pytest.mark.usefixtures("idle_before_and_after")
def test_fork_in_a_task() -> None:
    """A child that a task forks returns to that task's end, and the parent counts as before."""
    pool = ThreadPoolExecutor(1)
    assert pool.submit(fork, int).result(10) == (0, "")
    drain()
    check_accounting(pool)


# The tests of a small project, which leave their tasks running: each run drops its database.


SETTINGS = "tests.projects.drain_project.settings"
#: How often with which runner, and the name of the database then. All in all 50 times.
REPEATS = {
    "django": (18, "test_drained"),
    "django --parallel 2": (14, r"test_drained_\d"),
    "pytest": (14, "test_drained"),
    "pytest -n 2": (4, r"test_drained_gw\d"),
}


@pytest.mark.usefixtures("no_test_database_before")
@pytest.mark.timeout(150)
@pytest.mark.parametrize("runner", REPEATS)
def test_drops_the_database(runner: str, postgres: PostgresObserver) -> None:
    """Every run succeeds, and no test database is on the server after it."""
    times, pattern = REPEATS[runner]
    variables = environment(SETTINGS if runner.startswith("django") else None)
    variables.pop("PYTEST_ADDOPTS", None)
    finished = subprocess.run(
        [sys.executable, "-m", "tests.projects.drain_project.run", runner, str(times)],
        cwd=ROOT,
        env=variables | {"DATABASE_PATTERN": pattern},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=140,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    runs = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"code"')]
    assert runs == [{"code": 0, "left": []}] * times, finished.stdout
    assert postgres.execute(TEST_DATABASES) == []
    assert not postgres.left("test_drained")
