"""After a fork, the child leaves the parent's sockets alone, and its executors begin again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.db import connection, connections, transaction

from django_executors import (
    ExecutorError,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from django_executors.testing import drain, run_inline
from tests.projects.testapp.models import Entry
from tests.support.cache_clients import CacheServer, connection_of, use
from tests.support.forks import exit_code, fork, quiet_fork, server_pid
from tests.support.gates import Gate
from tests.support.kept import queued, results
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until
from tests.support.worlds import VARIABLE

T = TypeVar("T")

DONE = (0, "")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="made-before") as pool:
        yield pool


# The parent's connections stay as they were, whichever thread holds them and whichever thread forks.


def child_that_ends_threads() -> None:
    """End threads, close scopes, count connections."""
    assert all_connections() == ()
    thread = threading.Thread(target=Entry.objects.none)
    thread.start()
    thread.join(30)
    with connection_scope():
        pass
    assert ThreadPoolExecutor(1).submit(int).result(30) == 0
    assert all_connections() == ()


def in_the_main_thread(fn: Callable[[], T]) -> T:
    return fn()


def in_a_task(fn: Callable[[], T]) -> T:
    return ThreadPoolExecutor(1).submit(fn).result(60)


@pytest.mark.parametrize("where", [in_the_main_thread, in_a_task])
@pytest.mark.usefixtures("watch_every_thread")
def test_forking_thread(where: Callable[[Callable[[], T]], T], alias: str) -> None:
    """The connection of the thread that forks goes on as it was."""

    def forks() -> bool:
        before = server_pid(alias)
        assert fork(child_that_ends_threads) == DONE
        assert before in {info.backend_pid for info in all_connections()}
        return server_pid(alias) == before

    assert where(forks)


@pytest.mark.usefixtures("watch_every_thread")
def test_forking_thread_that_ends_in_the_child(alias: str) -> None:
    """In the child, the end of the thread that has forked closes nothing of the parent's."""

    def forks() -> None:
        before = server_pid(alias)
        pid = quiet_fork()
        if pid:
            found.append((exit_code(pid), server_pid(alias) == before))
        # It is the child's only thread: the child ends with it.

    found: list[tuple[int, bool]] = []
    thread = threading.Thread(target=forks)
    thread.start()
    thread.join(60)
    assert found == [(0, True)]


@pytest.mark.usefixtures("watch_every_thread")
def test_beside_a_thread_that_holds_one(alias: str) -> None:
    """A connection of another thread goes on as it was, though the child collects its wrapper."""
    pids: list[int] = []

    def child() -> None:
        child_that_ends_threads()
        gc.collect()

    def hold() -> None:
        pids.append(server_pid(alias))
        gate()
        pids.append(server_pid(alias))

    gate = Gate()
    thread = threading.Thread(target=hold)
    thread.start()
    gate.wait_for()
    try:
        assert fork(child) == DONE
    finally:
        gate.open()
        thread.join(30)
    assert pids == [pids[0]] * 2


def test_own_connection_is_left_to_django(alias: str) -> None:
    """A connection that no worker has opened is in the child what it is without this package."""
    before = server_pid(alias)

    def child() -> None:
        assert server_pid(alias) == before

    assert fork(child) == DONE
    assert server_pid(alias) == before


# An executor that was made before a fork works in the child, with threads of its own.


def test_works_in_the_child(pool: ThreadPoolExecutor) -> None:
    """The child's tasks, and a grandchild's, run in its own threads, on its own connections."""
    of_parent = set(pool.map(lambda _: server_pid("default"), range(4)))

    def child() -> None:
        found = pool.map(lambda number: Entry.objects.count() + number, range(20), timeout=30)
        assert list(found) == [*range(20)]
        assert pool.submit(server_pid, "default").result(30) not in of_parent
        drain()
        assert all_connections() == ()

    def child_that_forks() -> None:
        child()
        assert fork(child) == DONE
        child()
        pool.shutdown()

    assert fork(child_that_forks) == DONE
    assert pool.submit(Entry.objects.count).result(30) == 0


def test_work_of_the_parent(
    pool: ThreadPoolExecutor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs or waits in the parent is done there alone; in the child its futures fail at once."""
    ran_in: list[int] = []
    called_in: list[int] = []
    done, failed = pool.submit(int, 3), pool.submit(int, "x")
    concurrent.futures.wait([done, failed], 30)
    futures = [pool.submit(gate) for _ in range(2)]
    gate.wait_for(2)
    futures += [pool.submit(lambda: ran_in.append(os.getpid())) for _ in range(3)]
    for future in futures:
        future.add_done_callback(lambda _: called_in.append(os.getpid()))

    def child() -> None:
        nonlocal failed
        drain(30)
        assert done.result(0) == 3
        assert concurrent.futures.wait(futures, 30).not_done == set()
        for future in futures:
            with pytest.raises(ExecutorError, match=f"parent process.*pid={os.getppid()}"):
                future.result(0)
        assert pool.submit(int, 7).result(30) == 7
        pool.shutdown()
        assert not called_in
        assert not ran_in
        failed = done
        assert caplog.records == []  # to ask for its result is the parent's to do

    assert fork(child) == DONE
    assert isinstance(failed.exception(), ValueError)
    gate.open()
    pool.shutdown()
    assert [future.exception(0) for future in futures] == [None] * 5
    assert ran_in == [os.getpid()] * 3
    assert called_in == [os.getpid()] * 5


def test_shut_down_before() -> None:
    """An executor that was shut down refuses tasks in the child too."""
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result(30)
    pool.shutdown()

    def child() -> None:
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(int)
        pool.shutdown()

    assert fork(child) == DONE


def test_initializer() -> None:
    """The child's threads run the initializer again, one that failed in the parent too."""
    parent = os.getpid()

    def initializer() -> None:
        if os.getpid() == parent:
            raise RuntimeError("only in the parent")

    pool = ThreadPoolExecutor(1, initializer=initializer)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        pool.submit(int).result(30)

    def child() -> None:
        assert pool.submit(int, 5).result(30) == 5

    assert fork(child) == DONE
    with pytest.raises(concurrent.futures.BrokenExecutor):
        pool.submit(int)


def test_settings_stay() -> None:
    """The number of threads, their names, conn_max_idle and inherit_context are what they were."""
    pool = ThreadPoolExecutor(3, "made-before", conn_max_idle=60, inherit_context=False)
    pool.submit(int).result(30)

    def child() -> None:
        VARIABLE.set("of the submitter")
        barrier = threading.Barrier(3)
        found = pool.map(
            lambda _: (barrier.wait(30), threading.current_thread().name, VARIABLE.get())[1:], range(3)
        )
        assert sorted(found) == [(f"made-before_{number}", "") for number in range(3)]
        pool.submit(Entry.objects.count).result(30)
        assert len(all_connections()) == 1
        drain()
        assert all_connections() == ()

    assert fork(child) == DONE


def test_run_inline() -> None:
    """What runs in its caller's thread does so in the child, after the initializer there."""
    ran_in: list[int] = []
    pool = ThreadPoolExecutor(1, initializer=lambda: ran_in.append(os.getpid()))

    def child() -> None:
        assert pool.submit(threading.get_ident).result(0) == threading.get_ident()
        assert ran_in == [os.getppid(), os.getpid()]

    with run_inline():
        pool.submit(int)
        assert fork(child) == DONE


# The sessions of the parent's threads live as long as the parent wants, and no longer.

SESSIONS = """
import gc, os, sys, threading
os.register_at_fork(after_in_child=gc.collect)  # before any other handler in the child
from django.conf import settings
from django_executors import ThreadPoolExecutor
from tests.support.forks import exit_code, quiet_fork, session
from tests.support.gates import Gate

ALL = {"default", "mariadb", "redis", "memcached"}
ALIASES = sorted(ALL & {*settings.DATABASES, *settings.CACHES})
pool, gate = ThreadPoolExecutor(2), Gate()
lived = []

def sessions():
    return [session(alias) for alias in ALIASES]

def hold():
    before = sessions()
    gate()
    lived.append(sessions() == before)

threads = [threading.Thread(target=hold)]
threads[0].start()
held = pool.submit(hold)
gate.wait_for(2)
pid = quiet_fork()
if pid == 0:
    ended = threading.Thread(target=sessions)
    ended.start()
    ended.join(30)
    assert None not in pool.submit(sessions).result(30)
    gc.collect()
    sys.exit(0)
assert exit_code(pid) == 0
gate.open()
held.result(30)
threads[0].join(30)
print(lived)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("postgres")
def test_sessions_live() -> None:
    """They do when the child has ended threads, collected garbage, and ended with its interpreter."""
    finished = run_python(
        SESSIONS,
        settings="tests.settings",
        warnings="ignore::ResourceWarning",  # of the plain thread's client
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "[True, True]\n", "")


@pytest.mark.slow
def test_server_notices_that_the_parent_is_gone(postgres: PostgresObserver) -> None:
    """When the parent is killed, nothing in the child keeps its workers' sessions alive."""
    finished = run_python(
        """
        import os, signal, threading
        from django_executors import ThreadPoolExecutor
        from tests.support.forks import quiet_fork, session
        connected = threading.Event()
        def hold():
            session("default")
            connected.set()
            threading.Event().wait(40)
        ThreadPoolExecutor(1).submit(hold)
        assert connected.wait(30)
        pid = quiet_fork()
        if pid == 0:
            os.close(1)
            os.close(2)
            threading.Event().wait(40)
            os._exit(0)
        print(pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        settings="tests.settings",
    )
    assert finished.stderr == ""
    try:
        assert not postgres.left()
    finally:
        os.kill(int(finished.stdout), 9)


# What a task has open when it forks is its own; the child opens its own.


def test_child_connects_again(alias: str, pool: ThreadPoolExecutor) -> None:
    """In a transaction too: the child's queries go to a session of its own, in none."""
    entries = Entry.objects.using(alias)

    def task() -> tuple[object, ...]:
        with transaction.atomic(using=alias):
            entries.create(name="of the parent")
            before = server_pid(alias)

            def child() -> None:
                assert all_connections() == ()
                with transaction.atomic(using=alias):
                    assert not transaction.get_autocommit(using=alias)
                    assert server_pid(alias) != before
                assert not entries.exists()
                with transaction.atomic(using=alias):
                    entries.create(name="of the child")
                (info,) = all_connections()
                assert info.executor is None
                assert pool.submit(entries.count).result(30) == 1
                drain()

            return fork(child), server_pid(alias) == before, entries.count()

    assert pool.submit(task).result(60) == (DONE, True, 2)
    assert entries.count() == 2


def test_child_leaves_the_atomic_block(pool: ThreadPoolExecutor) -> None:
    """A child that comes back through `atomic` and an open cursor disturbs the parent's in nothing."""

    def task() -> tuple[int, int]:
        with transaction.atomic(), connection.cursor() as cursor:
            Entry.objects.create(name="one")
            cursor.execute("SELECT generate_series(1, 3)")
            rows = Entry.objects.order_by("name").iterator()
            next(rows)
            pid = quiet_fork()
            if pid:
                code = exit_code(pid)
                assert [number for (number,) in cursor.fetchall()] == [1, 2, 3]
                assert list(rows) == []
        return code if pid else 0, Entry.objects.count()

    assert pool.submit(task).result(60) == (0, 1)


def test_pool_of_django(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """The child gets no connection out of the parent's pool: Django makes it one of its own."""
    pool.submit(server_pid, "pooled").result(30)
    of_parent = wait_until(lambda: postgres.backends("pooled"), lambda found: len(found) == 4)

    def child() -> None:
        assert pool.submit(server_pid, "pooled").result(30) not in of_parent

    assert fork(child) == DONE
    assert [pool.submit(server_pid, "pooled").result(30) in of_parent for _ in range(4)] == [True] * 4


def test_cache_clients(pool: ThreadPoolExecutor, cache_server: CacheServer) -> None:
    """In the child of a worker, a cache has a new client, and the parent's goes on as it was."""
    alias = cache_server.alias

    def task() -> tuple[object, ...]:
        client, number = caches[alias], connection_of(alias)

        def child() -> None:
            assert caches[alias] is not client
            assert connection_of(alias) != number
            pool.submit(use, alias).result(30)

        return fork(child), caches[alias] is client, connection_of(alias) == number

    assert pool.submit(task).result(60) == (DONE, True, True)
    cache_server.assert_own_is_untouched()


def test_async_code_before(pool: ThreadPoolExecutor) -> None:
    """A task that has used Django's ORM in async code may do so in its child."""
    assert asyncio.run(Entry.objects.acount()) == 0  # asgiref's own thread, which is not in the child
    asyncio.run(sync_to_async(connections.close_all)())

    def count() -> int:
        return asyncio.run(Entry.objects.acount())

    def task() -> tuple[int, str]:
        assert count() == 0
        return fork(count)

    assert pool.submit(task).result(60) == DONE


def test_in_async_code(pool: ThreadPoolExecutor) -> None:
    """A child that is forked in the async code of a task connects again."""

    def forks() -> tuple[int, str]:
        of_parent = server_pid("default")

        def child() -> None:
            assert server_pid("default") != of_parent

        return fork(child)

    async def task() -> tuple[int, str]:
        return await sync_to_async(forks)()

    assert pool.submit(lambda: asyncio.run(task())).result(60) == DONE


def test_kept_connection() -> None:
    """A child connects again; the parent goes on with what its worker kept for its next query."""

    def forks() -> tuple[tuple[int, str], int]:
        wrapper = connections["default"]

        def child() -> None:
            assert wrapper.connection is None
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                assert cursor.fetchone() != (kept.result(0),)
            assert server_pid("default") != kept.result(0)

        return fork(child), server_pid("default")

    with ThreadPoolExecutor(1) as pool:
        kept, forked = queued(pool, lambda: server_pid("default"), forks)
        of_parent, found = results([kept, forked])
    assert found == (DONE, of_parent)
