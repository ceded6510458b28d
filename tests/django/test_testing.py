"""`run_inline`, `assert_no_open_connections`, `drain` and `ExecutorTestMixin`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import unittest
from concurrent.futures import Future
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TestCase, TransactionTestCase

from django_executors import (
    ConnectionLeakError,
    ExecutorError,
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
)
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline
from private_servers import django_database
from tests.projects.drain_project.run import TEST_DATABASES
from tests.projects.testapp.models import Entry
from tests.support.draining import (
    IDLE,
    assert_holds_nothing,
    check_accounting,
    drain_through,
    is_idle,
    query,
)
from tests.support.gates import Gate
from tests.support.kept import results
from tests.support.leaking import (
    Body,
    collect,
    count,
    count_and_close,
    leaks,
    message_of,
    run,
    standing,
)
from tests.support.observers import PostgresObserver
from tests.support.running_cases import run_case
from tests.support.subprocesses import ROOT, environment
from tests.support.waiting import wait_until

drains = pytest.mark.usefixtures("idle_before_and_after")


def run_module(*command: str, settings: str | None = None, **variables: str) -> str:
    """Run a module in a Python of its own, which has to succeed, and return what it prints."""
    inherited = environment(settings)
    inherited.pop("PYTEST_ADDOPTS", None)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", *command],
        cwd=ROOT,
        env=inherited | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def runs_inline(pool: concurrent.futures.Executor) -> bool:
    return pool.submit(threading.get_ident).result(10) == threading.get_ident()


# `run_inline`.


PROJECT, PACKAGE = "tests/projects/inline_project", "tests.projects.inline_project"
RUNNERS = {
    "django": (["django", "test", f"{PACKAGE}.cases_django", "--noinput"], "Ran {} tests"),
    "pytest": (
        ["pytest", "-c", f"{PROJECT}/cases_pytest.ini", f"{PROJECT}/cases_pytest.py"],
        "{} passed",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "database"),
    [("django", "POSTGRES"), ("pytest", "POSTGRES"), ("django", "MARIADB"), ("pytest", "SQLite")],
)
def test_in_a_project(runner: str, database: str, postgres: PostgresObserver) -> None:
    """A project's tests see what tasks wrote, roll it back, and keep their connection."""
    if database == "SQLite":
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    elif (url := os.environ.get(f"TEST_{database}_URL")) is None:
        pytest.skip(f"no {database}")
    else:
        entry = django_database(url) | {"NAME": "inline"}
    command, summary = RUNNERS[runner]
    said = run_module(
        *command, settings=f"{PACKAGE}.settings", INLINE_PROJECT_DATABASE=json.dumps(entry)
    )
    assert re.search(summary.format("[1-9][0-9]"), said), said
    assert not re.search("skipped|deselected|xfailed", said), said
    assert not postgres.left("test_inline")


def test_workers_again_afterwards() -> None:
    """When it ends, by an exception too, tasks run in workers again; it may be nested."""
    with ThreadPoolExecutor(1) as pool:
        assert not runs_inline(pool)
        with run_inline():
            assert runs_inline(pool)
            with pytest.raises(LookupError), run_inline():
                raise LookupError
            assert runs_inline(pool)
        assert not runs_inline(pool)


def test_decorates_functions() -> None:
    """A decorated function runs inline each time it is called, and only then."""
    with ThreadPoolExecutor(1) as pool:

        @run_inline
        def decorated(pool: ThreadPoolExecutor) -> bool:
            """Say it."""
            return runs_inline(pool)

        @run_inline()
        async def coroutine(pool: ThreadPoolExecutor) -> bool:
            await asyncio.sleep(0)
            thread = await asyncio.wrap_future(pool.submit(threading.get_ident))
            return thread == await sync_to_async(threading.get_ident)()

        assert [decorated(pool), runs_inline(pool), decorated(pool)] == [True, False, True]
        assert [asyncio.run(coroutine(pool)), runs_inline(pool)] == [True, False]
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Say it.")


def test_decorates_test_cases() -> None:
    """As one base of several, a class runs the next one's setUpClass, and its own where it has one."""
    ran: list[object] = []
    pool = ThreadPoolExecutor(1)

    @run_inline
    class Base(unittest.TestCase):
        pass

    @run_inline
    class Own(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append(cls.__name__)
            super().setUpClass()

    class Other(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append(runs_inline(pool))
            super().setUpClass()

    class Mixed(Base, Own, Other):
        def test(self) -> None:
            ran.append(runs_inline(pool))

    result = run_case(Mixed)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert ran == ["Mixed", True, True]
    assert not runs_inline(pool)


def test_holds_in_every_thread() -> None:
    """It is in force in all threads: each runs its tasks itself, on its own connection."""
    with (
        run_inline(),
        ThreadPoolExecutor(1) as pool,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        assert list(threads.map(runs_inline, [pool] * 4, timeout=20)) == [True] * 4
        assert runs_inline(pool)


def test_opens_nothing_and_starts_no_worker(postgres: PostgresObserver) -> None:
    """The caller's connection is all that the server sees, and no thread is started."""
    threads = threading.active_count()
    with run_inline(), transaction.atomic(), ThreadPoolExecutor(4) as pool:
        Entry.objects.create(name="of the caller")
        assert list(pool.map(lambda _: Entry.objects.count(), range(8))) == [1] * 8
        assert threading.active_count() == threads
        assert len(postgres.backends()) == len(all_connections()) == 1
        transaction.set_rollback(True)
    assert Entry.objects.count() == 0


def test_what_was_submitted_before_goes_on(gate: Gate) -> None:
    """A task in a worker stays there, lets go at its end, and runs inline what it submits meanwhile."""
    pool = ThreadPoolExecutor(1, "before")

    def task() -> tuple[str, bool]:
        Entry.objects.create(name="of the worker")
        gate()
        pool.submit(connection.close).result(10)
        return threading.current_thread().name, runs_inline(pool)

    future = pool.submit(task)
    gate.wait_for()
    with run_inline():
        gate.open()
        assert future.result(20) == ("before_0", True)
    assert all_connections() == ()


# `assert_no_open_connections` fails on what other threads have left open.


@leaks
def test_thread_that_has_ended(postgres: PostgresObserver) -> None:
    """It names the thread that has ended, the alias, and the backend as the server knows it."""
    said = message_of(lambda: run(count))
    (pid,) = postgres.backends()
    first, line = said.splitlines()
    assert first == "1 database connection(s) left open by other threads:"
    assert re.fullmatch(
        rf"thread=orders alias=default backend_pid={pid} executor=None task=None age=\d+\.\ds", line
    )


@leaks
def test_collected(postgres: PostgresObserver) -> None:
    """What the collector has taken before the block's end is named all the same, and that it did."""
    pids: set[int] = set()

    def body() -> None:
        run(count)
        pids.update(postgres.backends())
        collect()
        assert all_connections() == ()

    said = message_of(body)
    (pid,) = pids
    assert f"thread=orders alias=default backend_pid={pid} " in said
    assert said.endswith("(left to the garbage collector, which has come for it)")


@leaks
def test_worker_that_keeps_its_connection() -> None:
    """With `conn_max_idle` a worker holds what the block opened, by order: that is a leak here."""
    with ThreadPoolExecutor(1, "reports", conn_max_idle=IDLE) as pool:
        said = message_of(lambda: pool.submit(count).result(10))
        assert "thread=reports_0 alias=default " in said
        assert " executor=reports task=None " in said
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)


@leaks
@pytest.mark.parametrize("alias", ["other", "mariadb"])
def test_every_alias(alias: str, request: pytest.FixtureRequest) -> None:
    """Not `default` alone: each alias counts, MariaDB's by its CONNECTION_ID()."""
    observer: Any = request.getfixturevalue("mariadb" if alias == "mariadb" else "postgres")
    numbers: set[int] = set()

    def body() -> None:
        run(lambda: Entry.objects.using(alias).count())
        numbers.update(observer.backends() if alias == "mariadb" else observer.backends(alias))

    said = message_of(body)
    (number,) = numbers
    assert f"thread=orders alias={alias} backend_pid={number} " in said


# `assert_no_open_connections` lets pass what is closed, the caller's own, and what was open before.


@pytest.mark.parametrize("alias", ["default", "pooled"])
def test_own_connections(alias: str) -> None:
    """The calling thread's own connections do not count."""
    with assert_no_open_connections(timeout=0.0):
        Entry.objects.using(alias).count()
        assert len(all_connections()) == 1


@pytest.mark.assert_no_open_connections(False)
def test_another_thread_than_the_main_one() -> None:
    """Its own are those of the thread that the block runs in: there the main thread's are another's."""

    def block() -> str:
        with assert_no_open_connections(timeout=0.0):
            count()
        try:
            return message_of(lambda: (mine.set(), theirs.wait(20)))
        finally:
            connection.close()

    mine, theirs = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(block)
        assert mine.wait(20)
        count()
        theirs.set()
        said = future.result(20)
    assert said.startswith("1 database connection(s)")
    assert "thread=MainThread alias=default " in said


@leaks
def test_opened_before(postgres: PostgresObserver) -> None:
    """What was open before the block does not count, used, closed or collected; a new one does."""
    with concurrent.futures.ThreadPoolExecutor(1, "standard") as pool, standing(count, "other"):
        pool.submit(count).result(10)
        run(count, "ended")
        assert len(postgres.backends()) == 3
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)
            collect()
            assert wait_until(postgres.backends, lambda pids: len(pids) == 2)
        with assert_no_open_connections(timeout=0.0):
            pool.submit(lambda: connection.close()).result(10)
        assert "thread=standard_0 alias=default " in message_of(lambda: pool.submit(count).result(10))


def test_thread_about_to_let_go(gate: Gate) -> None:
    """It looks again, up to its timeout, before it fails."""

    def target() -> None:
        count()
        gate()
        connection.close()

    thread = threading.Thread(target=target)
    with assert_no_open_connections(timeout=20.0):
        thread.start()
        gate.wait_for()
        threading.Timer(0.05, gate.open).start()
    thread.join(20)


# `assert_no_open_connections` as a block, as a decorator, and in test cases.


@leaks
def test_a_body_that_raises_keeps_its_exception() -> None:
    """An exception of the block's own is not replaced, whatever was left."""
    with pytest.raises(LookupError, match="its own"), assert_no_open_connections(timeout=0.0):
        run(count)
        raise LookupError("its own")


@leaks
def test_decorator() -> None:
    """As a decorator it checks each call anew, gives arguments and result on, and fails a test."""

    @assert_no_open_connections(timeout=0.0)
    def decorated(target: Body, *, answer: int) -> int:
        run(target)
        return answer

    assert decorated(count_and_close, answer=1) == 1
    for _ in range(2):
        with pytest.raises(ConnectionLeakError, match=r"^1 database connection") as caught:
            decorated(count, answer=2)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, ExecutorError)
    assert decorated(count_and_close, answer=3) == 3


@leaks
def test_decorated_coroutine_function() -> None:
    """It is checked when it has been awaited; its ORM's thread is an asynchronous test's own."""

    @assert_no_open_connections(timeout=0.0)
    async def decorated(target: Body) -> int:
        await asyncio.to_thread(target)
        return await Entry.objects.acount()

    assert async_to_sync(decorated)(count_and_close) == 0
    assert connection.connection is not None
    with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
        async_to_sync(decorated)(count)
    connection.close()


@leaks
def test_blocks_inside_one_another() -> None:
    """Each block counts what was opened in it: the outer one what the inner one has told of too."""

    def body() -> None:
        assert "1 database connection(s)" in message_of(lambda: run(count))
        run(count)

    assert "2 database connection(s)" in message_of(body)
    with assert_no_open_connections(timeout=0.0):
        pass


@leaks
def test_in_djangos_test_case() -> None:
    """There the test's own transaction does not count, and threads do: it fails, and does not err."""

    class Case(ExecutorTestMixin, TestCase):
        databases = {"default"}  # noqa: RUF012

        def test_leaks(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                Entry.objects.create(name="of the test")
                run(count)

        def test_holds_none(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                Entry.objects.create(name="of the test")
                ThreadPoolExecutor(1).submit(count).result(10)

    result = run_case(Case)
    assert (result.testsRun, result.errors) == (2, [])
    ((failed, said),) = result.failures
    assert failed.id().endswith(".test_leaks")
    assert "thread=orders alias=default " in said
    assert Entry.objects.count() == 0
    connection.close()


# `drain` waits for tasks, callbacks and initializers, and says what is left when its time is up.


@drains
def test_nothing_to_do() -> None:
    """It returns at once, without a look at the clock, where nothing was ever to do, or all is done."""
    drain(0)
    pool = ThreadPoolExecutor(2)
    drain(0)
    pool.submit(query).result(10)
    drain()
    drain(0)
    pool.shutdown()
    drain(0)


@drains
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_waits_for_tasks(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """It waits for those that run and for those that are queued, of every executor."""
    pools = [ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) for _ in range(2)]
    for pool in pools:
        pool.submit(gate)
    gate.wait_for(2)
    queued = [pool.submit(query) for pool in pools for _ in range(3)]
    drain_through(gate)
    assert [future.done() for future in queued] == [True] * 6
    assert_holds_nothing(postgres)
    for pool in pools:
        check_accounting(pool)


@drains
def test_waits_for_callbacks(gate: Gate) -> None:
    """A future that is done is not enough: its callbacks have to end too."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    future = pool.submit(before)
    future.add_done_callback(gate)
    before.open()
    future.result(10)
    gate.wait_for()
    drain_through(gate, "busy=1 pending=0 tasks=a callback or an initializer")
    assert len(gate.ended) == 1
    check_accounting(pool)


@drains
def test_waits_for_initializers(gate: Gate) -> None:
    """A worker in its initializer is busy, although another has done all the tasks."""
    second_only = itertools.count()

    def initializer() -> None:
        if next(second_only):
            gate()

    pool = ThreadPoolExecutor(2, initializer=initializer)
    first = Gate()
    futures = [pool.submit(first), pool.submit(query)]
    gate.wait_for()
    first.open()
    results(futures)
    drain_through(gate)
    check_accounting(pool)


@drains
def test_says_what_is_left(gate: Gate) -> None:
    """Its error says of each executor how many workers are busy, how much is queued, and what runs."""
    reports, mails = ThreadPoolExecutor(2, "reports"), ThreadPoolExecutor(1, "mails")

    def render() -> None:
        gate()

    def send() -> None:
        gate()

    for _ in range(5):
        reports.submit(functools.partial(render))
    mails.submit(send)
    gate.wait_for(3)
    with pytest.raises(TimeoutError) as caught:
        drain(0.02)
    name = f"{__name__}.test_says_what_is_left.<locals>"
    assert str(caught.value).splitlines() == [
        "not idle after 0.02 seconds:",
        f"executor=reports busy=2 pending=3 tasks={name}.render, {name}.render",
        f"executor=mails busy=1 pending=0 tasks={name}.send",
    ]


@drains
def test_in_a_worker() -> None:
    """A task, a callback and an initializer would wait for themselves: they are refused at once."""
    refused: list[str] = []

    def try_to(*_: object) -> None:
        with contextlib.suppress(TimeoutError):
            try:
                drain(0)
            except RuntimeError as error:
                refused.append(str(error))

    before = Gate()
    pool = ThreadPoolExecutor(1, initializer=try_to)
    pool.submit(before).add_done_callback(try_to)
    pool.submit(try_to)
    before.open()
    drain()
    assert len(refused) == 3
    assert all(re.search(r"drain\(\) was called in", message) for message in refused)


@drains
def test_in_the_callers_thread() -> None:
    """A task that runs where it was submitted may drain: it is no worker's."""
    ImmediateExecutor().submit(drain, 0).result(0)
    with run_inline(), ThreadPoolExecutor(1) as pool:
        pool.submit(drain, 0).result(0)


@drains
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_counts_under_load(conn_max_idle: float, postgres: PostgresObserver) -> None:
    """Threads submit at once, tasks submit tasks, some query: every task is counted once."""
    pool = ThreadPoolExecutor(8, conn_max_idle=conn_max_idle)
    done: list[object] = []

    def nested(number: int) -> None:
        if number % 10 == 0:
            query()
        pool.submit(done.append, number)

    def submit() -> None:
        for number in range(20):
            pool.submit(nested, number).add_done_callback(done.append)
            if number % 10 == 0:
                drain(20)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            results([threads.submit(submit) for _ in range(4)])
        drain(20)
    finally:
        sys.setswitchinterval(before)
    assert len(done) == 2 * 4 * 20
    assert_holds_nothing(postgres)
    check_accounting(pool)


# When `drain` returns, idle workers hold no connection, and are as many as before.


@drains
def test_kept_while_idle(postgres: PostgresObserver) -> None:
    """Idle workers that keep a connection let go of it at once, and are as many as before."""
    workers = 2
    pool = ThreadPoolExecutor(workers, conn_max_idle=IDLE)
    barrier = threading.Barrier(workers)

    def task() -> str:
        barrier.wait(20)
        return query()

    names = set()
    for _ in range(3):
        names |= set(results([pool.submit(task) for _ in range(workers)]))
        assert len(postgres.backends()) == workers
        drain()
        assert_holds_nothing(postgres)
    assert len(names) == workers
    check_accounting(pool)


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> Gate:
    """Hold up each close in a worker until the gate opens."""
    close, main = BaseDatabaseWrapper.close, threading.get_ident()

    def slow_close(self: BaseDatabaseWrapper) -> None:
        # Not current_thread(): where a thread has ended, it would leave a dummy.
        if self.connection is not None and threading.get_ident() != main:
            gate()
        close(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "close", slow_close)
    return gate


@drains
def test_waits_until_they_have_let_go(closing: Gate, postgres: PostgresObserver) -> None:
    """It returns when the kept connections are closed, not while they are being closed."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    pool.submit(query).result(10)
    assert not is_idle()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


@drains
@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_waits_for_what_callbacks_opened(ends: bool, closing: Gate, postgres: PostgresObserver) -> None:
    """What a callback opened is closed, too, when it returns, where its worker ends as well."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    if ends:
        pool.shutdown(wait=False)
    before.open()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


@drains
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
def test_sqlite_in_memory(conn_max_idle: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite in memory, which Django never closes, does not hold it up."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": 60}
    monkeypatch.setitem(connections.settings, "memory", entry)
    with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        pool.submit(lambda: connections["memory"].ensure_connection()).result(10)
        drain()
        check_accounting(pool)


# `ExecutorTestMixin` drains: before a test's rows are removed, and when its class is done.


@drains
def test_mixin_drains_before_the_flush(gate: Gate) -> None:
    """What a test's tasks write after its end is gone with the rest of what it wrote."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    futures: list[Future[None]] = []

    def write_later() -> None:
        gate()
        Entry.objects.create(name="written late")

    class Case(ExecutorTestMixin, TransactionTestCase):
        def test(self) -> None:
            futures.append(pool.submit(write_later))
            # The test is over then, and draining has begun.
            self.addCleanup(threading.Timer(0.1, gate.open).start)

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert [future.done() and future.exception() for future in futures] == [None]
    assert Entry.objects.count() == 0
    connection.close()
    assert is_idle()


@drains
def test_mixin_drains_when_the_class_is_done(gate: Gate) -> None:
    """What its own class set-up and tear-down left to do is done when the class is."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)

    class Case(ExecutorTestMixin, TransactionTestCase):
        @classmethod
        def tearDownClass(cls) -> None:
            super().tearDownClass()
            pool.submit(gate)
            pool.submit(query)
            threading.Timer(0.05, gate.open).start()

        def test(self) -> None:
            pass

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    connection.close()
    assert all_connections() == ()
    assert is_idle()


@pytest.mark.slow
@pytest.mark.usefixtures("no_test_database_before")
@pytest.mark.parametrize("runner", ["django", "pytest"])
def test_mixin_drains_before_the_database_is_dropped(runner: str, postgres: PostgresObserver) -> None:
    """Every run of a project's tests, which leave their tasks running, drops its test databases."""
    said = run_module("tests.projects.drain_project.run", runner)
    runs = [json.loads(line) for line in said.splitlines() if line.startswith('{"code"')]
    assert runs == [{"code": 0, "left": []}] * 3, said
    assert postgres.execute(TEST_DATABASES) == []
    assert not postgres.left("test_drained")
