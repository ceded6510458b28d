"""`run_inline`: by itself here, and in the tests of a small project, under both test runners."""

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
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import SimpleTestCase, TestCase, TransactionTestCase

from django_executors import (
    ConnectionLeakError,
    ExecutorError,
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    testing,
)
from django_executors.execution import inline
from django_executors.lifecycle.leaks import Watch
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections, drain, run_inline
from private_servers import django_database
from tests.connections.test_fork import fork
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
    WORKERS,
    Body,
    collect,
    count,
    count_and_close,
    leaks,
    message_of,
    run,
    standing,
)
from tests.support.observers import MariaDBObserver, PostgresObserver
from tests.support.running_cases import run_case
from tests.support.subprocesses import ROOT, environment
from tests.support.waiting import wait_until

PROJECT, PACKAGE = "tests/projects/inline_project", "tests.projects.inline_project"
RUNNERS = {
    "django": (["django", "test", f"{PACKAGE}.cases_django", "--noinput"], "Ran {} tests"),
    "pytest": (
        ["pytest", "-c", f"{PROJECT}/cases_pytest.ini", f"{PROJECT}/cases_pytest.py"],
        "{} passed",
    ),
}


def _server(variable: str) -> dict[str, Any]:
    if variable not in os.environ:
        pytest.skip(f"no {variable}")
    return django_database(os.environ[variable]) | {"NAME": "inline"}


def _sqlite(**test: str) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "TEST": test}


DATABASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "postgresql": lambda folder: _server("TEST_POSTGRES_URL"),
    "mariadb": lambda folder: _server("TEST_MARIADB_URL"),
    "sqlite in memory": lambda folder: _sqlite(),
    "sqlite in a file": lambda folder: _sqlite(NAME=str(folder / "test.sqlite3")),
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("database", DATABASES)
def test_in_a_project(runner: str, database: str, tmp_path: Path, postgres: PostgresObserver) -> None:
    """A project's tests see what tasks wrote, roll it back, and keep their connection."""
    arguments, summary = RUNNERS[runner]
    variables = environment(f"{PACKAGE}.settings")
    variables["INLINE_PROJECT_DATABASE"] = json.dumps(DATABASES[database](tmp_path))
    variables.pop("PYTEST_ADDOPTS", None)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", *arguments],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert re.search(summary.format("[1-9][0-9]"), finished.stdout), finished.stdout
    assert not re.search("skipped|deselected|xfailed", finished.stdout), finished.stdout
    assert not postgres.left("test_inline")


def runs_inline(pool: concurrent.futures.Executor) -> bool:
    return pool.submit(threading.get_ident).result(10) == threading.get_ident()


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

        assert [decorated(pool), runs_inline(pool), decorated(pool)] == [True, False, True]
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "Say it.")


@pytest.mark.parametrize("what", [int, 5], ids=["a class", "a number"])
def test_decorates_nothing_else(what: Any) -> None:
    """It refuses what is neither a function nor a test case."""
    with pytest.raises(TypeError, match=r"int|\(5\)"):
        run_inline(what)


def test_ends_where_a_class_fails_to_set_up() -> None:
    """It ends too when a decorated class cannot be set up."""

    @run_inline
    class Broken(SimpleTestCase):
        @classmethod
        def setUpClass(cls) -> None:
            super().setUpClass()
            raise LookupError

        def test(self) -> None:
            raise AssertionError

    result = run_case(Broken)
    ((_, error),) = result.errors
    assert "LookupError" in error
    with ThreadPoolExecutor(1) as pool:
        assert not runs_inline(pool)


def test_holds_in_every_thread() -> None:
    """It is in force in all threads: each runs its tasks itself, on its own connection."""
    with (
        run_inline(),
        ThreadPoolExecutor(1) as pool,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        assert list(threads.map(runs_inline, [pool] * 4, timeout=10)) == [True] * 4
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


def test_what_was_submitted_before_goes_on() -> None:
    """A task in a worker stays there, lets go at its end, and runs inline what it submits meanwhile."""
    started, go_on = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(1, "before")

    def task() -> tuple[str, bool]:
        Entry.objects.create(name="of the worker")
        started.set()
        assert go_on.wait(10)
        pool.submit(connection.close).result(10)
        return threading.current_thread().name, runs_inline(pool)

    future = pool.submit(task)
    assert started.wait(10)
    with run_inline():
        go_on.set()
        assert future.result(10) == ("before_0", True)
    assert all_connections() == ()


def test_after_shutdown() -> None:
    """A pool that is shut down refuses tasks, inline or not."""
    pool = ThreadPoolExecutor(1)
    with run_inline():
        with pool:
            assert runs_inline(pool)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            pool.submit(int)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_a_decorated_class_leaves_no_setup_of_its_siblings_out() -> None:
    """As one base of several, it runs the next one's setUpClass, and its own where it has one."""
    ran: list[str] = []

    @run_inline
    class Base(unittest.TestCase):
        pass

    @run_inline
    class Own(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append(f"own of {cls.__name__}")
            super().setUpClass()

    class Other(unittest.TestCase):
        @classmethod
        def setUpClass(cls) -> None:
            ran.append("other")
            super().setUpClass()

    class Mixed(Base, Own, Other):
        def test(self) -> None:
            assert inline.switched_on

    result = run_case(Mixed)
    assert result.wasSuccessful()
    assert result.testsRun == 1
    assert ran == ["own of Mixed", "other"]
    assert not inline.switched_on


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
def test_thread_that_lives_on(postgres: PostgresObserver) -> None:
    """A thread that does something else by now, and holds its connection, is named."""
    with contextlib.ExitStack() as stack:
        said = message_of(lambda: stack.enter_context(standing(count)))
        (pid,) = postgres.backends()
        assert f"thread=orders alias=default backend_pid={pid} " in said


@leaks
def test_collected(postgres: PostgresObserver) -> None:
    """What the collector has taken before the block's end is named all the same, and that it did."""
    pids: list[set[int]] = []

    def body() -> None:
        run(count)
        pids.append(postgres.backends())
        collect()
        assert all_connections() == ()

    said = message_of(body)
    assert not postgres.left()
    ((pid,),) = pids
    assert f"thread=orders alias=default backend_pid={pid} " in said
    assert said.endswith("(left to the garbage collector, which has come for it)")


@leaks
@pytest.mark.parametrize("shut_down", [False, True])
def test_standard_pool(shut_down: bool, postgres: PostgresObserver) -> None:
    """Each worker of a standard pool is named, shut down or not."""
    together = threading.Barrier(WORKERS)

    def task() -> None:
        count()
        together.wait(10)

    def body() -> None:
        for future in [pool.submit(task) for _ in range(WORKERS)]:
            future.result(10)
        if shut_down:
            pool.shutdown()

    with concurrent.futures.ThreadPoolExecutor(WORKERS, "standard") as pool:
        first, *lines = message_of(body).splitlines()
        assert first.startswith(f"{WORKERS} database connection(s)")
        told = [re.match(r"thread=standard_\d alias=default backend_pid=(\d+) ", line) for line in lines]
        assert {int(found[1]) for found in told if found} == postgres.backends()


@leaks
def test_to_thread() -> None:
    """A thread of asyncio's own executor is named, although the loop has ended and joined it."""
    said = message_of(lambda: asyncio.run(asyncio.to_thread(count)))
    assert "thread=asyncio_0 alias=default " in said


@leaks
def test_thread_of_asgiref() -> None:
    """So is the one thread in which asgiref runs the async ORM; it lives as long as the process."""
    try:
        said = message_of(lambda: asyncio.run(Entry.objects.acount()))
    finally:
        asyncio.run(sync_to_async(connections.close_all)())
    assert said.startswith("1 database connection(s)")


@leaks
def test_worker_that_keeps_its_connection() -> None:
    """With `conn_max_idle` a worker holds what the block opened, by order: that is a leak here."""
    with ThreadPoolExecutor(1, "reports", conn_max_idle=60) as pool:
        said = message_of(lambda: pool.submit(count).result(10))
        assert "thread=reports_0 alias=default " in said
        assert " executor=reports task=None " in said
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)


@leaks
def test_alias_that_left_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is named although its alias is in the settings no more."""

    def body() -> None:
        with monkeypatch.context() as patch:
            patch.setitem(connections.settings, "former", connections.settings["default"])
            run(lambda: Entry.objects.using("former").count())

    assert "thread=orders alias=former " in message_of(body)


@leaks
def test_copied_wrapper() -> None:
    """A wrapper that a thread has made by `copy()` counts as any other."""
    kept: list[Any] = []

    def target() -> None:
        kept.append(connections["default"].copy())
        kept[0].ensure_connection()

    assert "thread=orders alias=default " in message_of(lambda: run(target))
    kept.clear()


@leaks
def test_worker_that_connects_anew() -> None:
    """A thread that held a connection before is named if it has closed it and opened another."""

    def task() -> None:
        connection.close()
        count()

    with concurrent.futures.ThreadPoolExecutor(1, "standard") as pool:
        pool.submit(count).result(10)
        said = message_of(lambda: pool.submit(task).result(10))
    assert "thread=standard_0 alias=default " in said


@leaks
def test_closed_from_another_thread() -> None:
    """Closing a connection of another thread's, which Django forbids, does not hide it."""
    kept: list[Any] = []

    def target() -> None:
        count()
        kept.append(connections["default"])

    def body() -> None:
        run(target)
        with pytest.raises(DatabaseError, match="thread"):
            kept[0].close()

    assert "thread=orders alias=default " in message_of(body)
    kept.clear()


@leaks
@pytest.mark.parametrize("alias", ["other", "sqlite", "mariadb"])
def test_every_alias(alias: str, request: pytest.FixtureRequest) -> None:
    """Not `default` alone: each alias counts, and on MariaDB by its CONNECTION_ID()."""
    numbers: set[int] = set()

    def target() -> None:
        count_and_close()
        Entry.objects.using(alias).count()

    if alias == "mariadb":
        mariadb: MariaDBObserver = request.getfixturevalue("mariadb")

    def body() -> None:
        run(target)
        if alias == "mariadb":
            numbers.update(mariadb.backends())

    said = message_of(body)
    assert said.startswith("1 database connection(s)")
    assert f"thread=orders alias={alias} " in said
    assert all(f" backend_pid={number} " in said for number in numbers)


# `assert_no_open_connections` lets pass what is closed, the caller's own, and what was open before.


@pytest.mark.parametrize("alias", ["default", "other", "pooled", "sqlite", "mariadb"])
def test_own_connections(alias: str, request: pytest.FixtureRequest) -> None:
    """The calling thread's own connections do not count."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
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
            return message_of(lambda: (mine.set(), theirs.wait(10)))
        finally:
            connection.close()

    mine, theirs = threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(block)
        assert mine.wait(10)
        count()
        theirs.set()
        said = future.result(10)
    assert said.startswith("1 database connection(s)")
    assert "thread=MainThread alias=default " in said


@leaks
def test_opened_before(postgres: PostgresObserver) -> None:
    """What was open before the block does not count, whether used, left, closed or collected in it."""
    with concurrent.futures.ThreadPoolExecutor(1, "standard") as pool, standing(count, "other"):
        pool.submit(count).result(10)
        run(count, "ended")
        assert len(postgres.backends()) == 3
        with assert_no_open_connections(timeout=0.0):
            pool.submit(count).result(10)
            collect()
            assert wait_until(postgres.backends, lambda pids: len(pids) == 2)
        with assert_no_open_connections(timeout=0.0):
            pool.submit(connection.close)


@pytest.mark.parametrize("alias", ["default", "other", "sqlite", "mariadb"])
def test_pool(alias: str, conn_max_age: int | None, request: pytest.FixtureRequest) -> None:
    """Tasks on this library's pool pass with no patience at all, whether others are queued or not."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")
    entries = Entry.objects.using(alias)
    with assert_no_open_connections(timeout=0.0):
        pool = ThreadPoolExecutor(WORKERS)
        futures = [pool.submit(entries.count) for _ in range(10 * WORKERS)]
        assert [future.result(10) for future in futures] == [0] * (10 * WORKERS)
    with assert_no_open_connections(timeout=0.0):
        assert pool.submit(entries.count).result(10) == 0


def test_callbacks_and_initializers(conn_max_age: int | None) -> None:
    """A callback that uses the ORM passes a moment later than its task's future; so do initializers."""
    with assert_no_open_connections():
        pool = ThreadPoolExecutor(WORKERS, initializer=count)
        for _ in range(3 * WORKERS):
            future = pool.submit(int)
            future.add_done_callback(lambda _: count())
        future.result(10)


@pytest.mark.parametrize("alias", ["default", "sqlite", "mariadb"])
def test_thread_that_closes(alias: str, request: pytest.FixtureRequest) -> None:
    """A thread that closes what it opened passes, on every database."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def target() -> None:
        Entry.objects.using(alias).count()
        connections.close_all()

    with assert_no_open_connections(timeout=0.0):
        run(target)
        with standing(connection_scope(count)):
            pass


@pytest.mark.usefixtures("watch_every_thread")
def test_with_the_app() -> None:
    """With the app installed threads close at their ends, and a thread that is ending is waited for."""
    with assert_no_open_connections():
        run(count)


def test_thread_about_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again, up to its timeout, before it fails."""
    looked = threading.Event()

    class Seen(Watch):
        def leaks(self) -> list[str]:
            found = super().leaks()
            looked.set()
            return found

    def target() -> None:
        count()
        done.set()
        looked.wait(30)
        connection.close()

    monkeypatch.setattr(testing, "Watch", Seen)
    done, thread = threading.Event(), threading.Thread(target=target)
    with assert_no_open_connections(timeout=30.0):
        thread.start()
        assert done.wait(10)
    assert looked.is_set()
    thread.join(10)


def test_copy_of_the_calling_thread() -> None:
    """A wrapper that the calling thread has made by `copy()` is its own, wherever it connects."""
    lent: Any = connection.copy()
    lent.inc_thread_sharing()
    with assert_no_open_connections(timeout=0.0):
        run(lent.ensure_connection)
    assert lent.connection is not None
    lent.close()


@leaks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child() -> None:
    """A forked child that runs a block of its own does not count what the parent has open."""

    def child() -> None:
        with assert_no_open_connections(timeout=0.0):
            ThreadPoolExecutor(1).submit(int).result(10)
        assert testing.ConnectionLeakError is ConnectionLeakError

    with standing(count), assert_no_open_connections(timeout=0.0):
        count()
        assert fork(child) == (0, "")
    connection.close()


# `assert_no_open_connections` as a block, as a decorator, and in test cases.


def test_its_error() -> None:
    """What it raises is an assertion that failed, and an error of this library's."""
    assert issubclass(ConnectionLeakError, AssertionError)
    assert issubclass(ConnectionLeakError, ExecutorError)


@leaks
def test_a_body_that_raises_keeps_its_exception() -> None:
    """An exception of the block's own is not replaced, whatever was left."""
    with pytest.raises(LookupError, match="its own"), assert_no_open_connections(timeout=0.0):
        run(count)
        raise LookupError("its own")


@leaks
def test_decorator() -> None:
    """As a decorator it checks each call anew, and gives arguments and result on."""

    @assert_no_open_connections(timeout=0.0)
    def decorated(target: Body, *, answer: int) -> int:
        run(target)
        return answer

    assert decorated(count_and_close, answer=1) == 1
    for _ in range(2):
        with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
            decorated(count, answer=2)
    assert decorated(count_and_close, answer=3) == 3


@leaks
def test_decorated_function_that_calls_itself() -> None:
    """Each of its calls is checked by itself, so that the outer one is not lost."""

    @assert_no_open_connections(timeout=0.0)
    def decorated(times: int) -> None:
        if times:
            run(count)
            decorated(times - 1)

    with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
        decorated(1)


@leaks
def test_decorated_coroutine_function() -> None:
    """A decorated coroutine function is checked when it has been awaited."""

    @assert_no_open_connections(timeout=0.0)
    async def decorated(target: Body) -> int:
        await asyncio.to_thread(target)
        return 1

    assert asyncio.run(decorated(count_and_close)) == 1
    with pytest.raises(ConnectionLeakError, match=r"^1 database connection"):
        asyncio.run(decorated(count))


def test_decorated_class() -> None:
    """A class, whose tests would no longer be found, is refused."""
    with pytest.raises(TypeError, match="decorates functions, not <class "):
        assert_no_open_connections()(unittest.TestCase)


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
def test_in_a_test_case() -> None:
    """A unittest case that has the mixin fails, and does not err, where a thread leaves a connection."""

    class Case(ExecutorTestMixin, unittest.TestCase):
        def test_leaks(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                run(count)

        def test_holds_none(self) -> None:
            with self.assertNoOpenConnections(timeout=0.0):
                run(count_and_close)

        @assert_no_open_connections(timeout=0.0)
        def test_decorated(self) -> None:
            run(count)

    result = run_case(Case)
    assert (result.testsRun, result.errors) == (3, [])
    assert {test.id().rpartition(".")[2] for test, _ in result.failures} == {
        "test_leaks",
        "test_decorated",
    }
    assert all("thread=orders alias=default " in said for _, said in result.failures)


@leaks
def test_in_djangos_test_case() -> None:
    """In Django's TestCase, the test's own transaction does not count, and threads do."""

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
    assert [test.id().rpartition(".")[2] for test, _ in result.failures] == ["test_leaks"]
    assert Entry.objects.count() == 0
    connection.close()


# `drain` waits for tasks, callbacks and initializers, and says what is left when its time is up.


@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
@pytest.mark.usefixtures("idle_before_and_after")
def test_waits_for_tasks(conn_max_idle: float, gate: Gate, postgres: PostgresObserver) -> None:
    """It waits for those that run and for those that are queued, of every executor."""
    pools = [ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) for _ in range(2)]
    for pool in pools:
        pool.submit(gate)
    gate.wait_for(2)
    queued = [pool.submit(query) for pool in pools for _ in range(3)]
    assert not is_idle()
    drained = threading.Event()
    waiting = threading.Thread(target=lambda: (drain(), drained.set()))
    waiting.start()
    assert not drained.wait(0.05)
    gate.open()
    assert drained.wait(10)
    assert [future.done() for future in queued] == [True] * 6
    assert_holds_nothing(postgres)
    waiting.join(10)
    for pool in pools:
        check_accounting(pool)


@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("idle_before_and_after")
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
    first, *others = str(caught.value).splitlines()
    name = f"{__name__}.test_says_what_is_left.<locals>"
    assert first == "not idle after 0.02 seconds:"
    assert others == [
        f"executor=reports busy=2 pending=3 tasks={name}.render, {name}.render",
        f"executor=mails busy=1 pending=0 tasks={name}.send",
    ]


@pytest.mark.usefixtures("idle_before_and_after")
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


@pytest.mark.usefixtures("idle_before_and_after")
def test_in_the_callers_thread() -> None:
    """A task that runs where it was submitted may drain: it is no worker's."""
    ImmediateExecutor().submit(drain, 0).result(0)
    with run_inline(), ThreadPoolExecutor(1) as pool:
        pool.submit(drain, 0).result(0)


@pytest.mark.parametrize("conn_max_idle", [0.0, IDLE])
@pytest.mark.usefixtures("idle_before_and_after")
def test_counts_under_load(conn_max_idle: float, postgres: PostgresObserver) -> None:
    """Threads submit at once, tasks submit tasks, callbacks query: every task is counted once."""
    submitters, tasks = 4, 60
    pool = ThreadPoolExecutor(8, conn_max_idle=conn_max_idle)
    done: list[object] = []

    def nested(number: int) -> None:
        if number % 10 == 0:
            query()
        pool.submit(done.append, number)

    def submit() -> None:
        for number in range(tasks):
            pool.submit(nested, number).add_done_callback(done.append)
            if number % 20 == 0:
                drain(20)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=submit) for _ in range(submitters)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        drain()
    finally:
        sys.setswitchinterval(before)
    assert len(done) == 2 * submitters * tasks
    assert_holds_nothing(postgres)
    check_accounting(pool)


# When `drain` returns, idle workers hold no connection, and are as many as before.


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.usefixtures("idle_before_and_after")
def test_kept_while_idle(postgres: PostgresObserver) -> None:
    """Idle workers that keep a connection let go of it at once, and are as many as before."""
    workers, rounds = 2, 20
    pool = ThreadPoolExecutor(workers, conn_max_idle=IDLE)
    barrier = threading.Barrier(workers)

    def task() -> str:
        barrier.wait(10)
        return query()

    names = set()
    for _ in range(rounds):
        names |= set(results([pool.submit(task) for _ in range(workers)]))
        assert len(postgres.backends()) == workers
        drain(5)
        assert_holds_nothing(postgres)
    assert len(names) == workers
    check_accounting(pool)


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.usefixtures("idle_before_and_after")
def test_no_phantom_worker() -> None:
    """Draining makes no worker look idle that is not: a task may still wait for one that it submits."""
    pool = ThreadPoolExecutor(2, conn_max_idle=IDLE)
    for _ in range(20):
        pool.submit(query).result(10)
        drain()

    def outer() -> str:
        return pool.submit(query).result(10)

    assert pool.submit(outer).result(20)
    drain()
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


@pytest.mark.usefixtures("idle_before_and_after")
def test_waits_until_they_have_let_go(closing: Gate, postgres: PostgresObserver) -> None:
    """It returns when the kept connections are closed, not while they are being closed."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    pool.submit(query).result(10)
    assert not is_idle()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


@pytest.mark.usefixtures("idle_before_and_after")
def test_waits_for_what_callbacks_opened(closing: Gate, postgres: PostgresObserver) -> None:
    """What a callback opened is closed, too, when it returns."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    before.open()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)
    check_accounting(pool)


@pytest.mark.usefixtures("idle_before_and_after")
def test_waits_for_workers_that_end(closing: Gate, postgres: PostgresObserver) -> None:
    """A worker that ends holds nothing any more when it returns: its end closes what is left."""
    before, pool = Gate(), ThreadPoolExecutor(1)
    pool.submit(before).add_done_callback(query)
    pool.shutdown(wait=False)
    before.open()
    closing.wait_for()
    drain_through(closing)
    assert_holds_nothing(postgres)


@pytest.mark.usefixtures("idle_before_and_after")
def test_sqlite_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite in memory, which Django never closes, does not hold it up."""
    entry = {**connections.settings["sqlite"], "NAME": ":memory:", "CONN_MAX_AGE": 60}
    monkeypatch.setitem(connections.settings, "memory", entry)

    def task() -> None:
        connections["memory"].ensure_connection()

    for conn_max_idle in (0.0, IDLE):
        with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
            pool.submit(task).result(10)
            drain(5)
            check_accounting(pool)


# `ExecutorTestMixin` drains: before a test's rows are removed, and when its class is done.


@pytest.mark.usefixtures("idle_before_and_after")
def test_mixin_drains_before_the_flush() -> None:
    """What a test's tasks write after its end is gone with the rest of what it wrote."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)
    gate = Gate()

    def write_later() -> None:
        gate()
        wait_until(lambda: False, within=0.2)  # the test is over, and draining begins
        Entry.objects.create(name="written late")

    class Case(ExecutorTestMixin, TransactionTestCase):
        def test(self) -> None:
            futures.append(pool.submit(write_later))
            self.addCleanup(gate.open)

    futures: list[Future[None]] = []
    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    (future,) = futures
    assert future.done()
    assert future.exception() is None
    assert Entry.objects.count() == 0
    connection.close()
    assert is_idle()


@pytest.mark.usefixtures("idle_before_and_after")
def test_mixin_drains_when_the_class_is_done() -> None:
    """What its own class set-up and tear-down left to do is done when the class is."""
    pool = ThreadPoolExecutor(1, conn_max_idle=IDLE)

    class Case(ExecutorTestMixin, TransactionTestCase):
        @classmethod
        def tearDownClass(cls) -> None:
            super().tearDownClass()
            pool.submit(wait_until, lambda: False, within=0.1)
            pool.submit(query)

        def test(self) -> None:
            pass

    result = run_case(Case)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    connection.close()
    assert all_connections() == ()
    assert is_idle()
