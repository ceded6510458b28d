"""`assert_no_open_connections` fails on what other threads have left open, and on nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import re
import threading
import tracemalloc
import unittest
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections
from django.test import TestCase

from django_executors import (
    ConnectionLeakError,
    ExecutorError,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
    testing,
)
from django_executors.lifecycle.leaks import Watch
from django_executors.testing import ExecutorTestMixin, assert_no_open_connections

from .observers import MariaDBObserver, PostgresObserver
from .test_fork import fork
from .testapp.models import Entry
from .waiting import wait_until

WORKERS = 4

Body = Callable[[], object]


def leaks(test: Any) -> Any:
    """Let a test leak: the suite's own check does not look, and what is left is collected afterwards."""
    return pytest.mark.assert_no_open_connections(False)(pytest.mark.usefixtures("leaked_before")(test))


def count() -> None:
    Entry.objects.count()


def count_and_close() -> None:
    count()
    connection.close()


def count_pooled() -> None:
    Entry.objects.using("pooled").count()


def run(target: Body, name: str = "orders") -> None:
    """Run it in a plain thread, to its end."""
    thread = threading.Thread(target=target, name=name)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def collect() -> None:
    """Collect garbage, with no word of drivers whose connections are open."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def message_of(body: Body, *, timeout: float = 0.0) -> str:
    """Run the body in the block, and return what the block has to say of it."""
    with pytest.raises(ConnectionLeakError) as caught, assert_no_open_connections(timeout=timeout):
        body()
    return str(caught.value)


@contextlib.contextmanager
def standing(work: Body, name: str = "orders") -> Iterator[None]:
    """A thread that has done this work, and lives on until the block's end."""
    done, go_on = threading.Event(), threading.Event()

    def target() -> None:
        work()
        done.set()
        go_on.wait(30)

    thread = threading.Thread(target=target, name=name)
    thread.start()
    assert done.wait(10)
    try:
        yield
    finally:
        go_on.set()
        thread.join(10)


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


# What it fails on.


def test_its_error() -> None:
    """What it raises is an assertion that failed, and an error of this library's."""
    assert issubclass(ConnectionLeakError, AssertionError)
    assert issubclass(ConnectionLeakError, ExecutorError)


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
    assert said.endswith("(left to the garbage collector, which has closed it)")


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
    assert " executor=reports task=tests.test_leak_detector." in said
    assert "write_report age=" in said


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


THE_LINE = f'File "{__file__}", line {count.__code__.co_firstlineno + 1}\n    Entry.objects.count()\n'


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


# What it lets pass.

checked = pytest.mark.usefixtures("collector_off")


@checked
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


@checked
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


@checked
def test_callbacks_and_initializers(conn_max_age: int | None) -> None:
    """A callback that uses the ORM passes a moment later than its task's future; so do initializers."""
    with assert_no_open_connections():
        pool = ThreadPoolExecutor(WORKERS, initializer=count)
        for _ in range(3 * WORKERS):
            future = pool.submit(int)
            future.add_done_callback(lambda _: count())
        future.result(10)


@checked
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


@checked
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


@checked
@pytest.mark.parametrize("how", ["unopened", "closed"])
def test_djangos_pool_that_is_not_open(how: str, pooled: dict[str, Any]) -> None:
    """A pool that has been made and not opened, or that has been closed, has lost nothing."""
    with assert_no_open_connections(timeout=0.0):
        pool = connections["pooled"].pool
        if how == "closed":
            pool.open(wait=True)
            pool.close()


@checked
def test_djangos_pool_that_was_replaced(pooled: dict[str, Any]) -> None:
    """A connection that outlived its pool may come back in the block."""
    count_pooled()
    connections["pooled"].close_pool()
    with assert_no_open_connections(timeout=0.0):
        connections["pooled"].close()


@checked
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


@checked
@pytest.mark.usefixtures("watch_every_thread")
def test_with_the_app() -> None:
    """With the app installed threads close at their ends, and a thread that is ending is waited for."""
    with assert_no_open_connections():
        run(count)


@checked
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


@checked
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


# How it is used.


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

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
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

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, result.errors) == (2, [])
    assert [test.id().rpartition(".")[2] for test, _ in result.failures] == ["test_leaks"]
    assert Entry.objects.count() == 0
    connection.close()
