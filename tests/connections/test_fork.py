"""After a fork the child's guard and ledger leave the parent's sockets alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection, connections, transaction

from django_executors import (
    ExecutorError,
    ImmediateExecutor,
    ThreadPoolExecutor,
    all_connections,
    connection_scope,
)
from django_executors.execution.futures import _tell_all
from django_executors.testing import drain, run_inline
from tests.connections.test_sessions import backend_pid, one_after_the_other
from tests.projects.testapp.models import Entry
from tests.support.cache_clients import CacheServer, connection_of, use
from tests.support.forks import exit_code, fork, quiet_fork, server_pid, session
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

ALIASES = ["default", "mariadb"]


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    if request.param == "mariadb":
        request.getfixturevalue("mariadb")
    name: str = request.param
    return name


def child_that_ends_threads() -> None:
    """What the guard and the ledger do in a child: end threads, close scopes, count."""
    assert all_connections() == ()
    thread = threading.Thread(target=Entry.objects.none)
    thread.start()
    thread.join(10)
    with connection_scope():
        pass
    assert ThreadPoolExecutor(1).submit(int).result(10) == 0
    assert all_connections() == ()


def child_that_drops_its_locals() -> None:
    """What the end of the forking thread does in a child: drop this thread's guard."""
    from django_executors.lifecycle import guard

    vars(guard._local).clear()
    assert all_connections() == ()


CHILDREN = [child_that_ends_threads, child_that_drops_its_locals]


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.usefixtures("watch_every_thread")
def test_from_the_main_thread(child: Callable[[], None], alias: str) -> None:
    """The connection of the main thread that forks goes on as it was."""
    before = server_pid(alias)
    assert fork(child) == (0, "")
    assert server_pid(alias) == before
    (info,) = all_connections()
    assert info.backend_pid == before


@pytest.mark.usefixtures("watch_every_thread")
def test_own_connection_is_left_to_django(alias: str) -> None:
    """The forking thread's connection, which no task has opened, is what it was in the child too."""
    before = server_pid(alias)

    def child() -> None:
        assert server_pid(alias) == before

    assert fork(child) == (0, "")
    assert server_pid(alias) == before


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.usefixtures("watch_every_thread")
def test_from_a_task(child: Callable[[], None], alias: str, postgres: PostgresObserver) -> None:
    """A task that forks keeps its connection until its own end."""

    def task() -> tuple[int, tuple[int, str], int]:
        return server_pid(alias), fork(child), server_pid(alias)

    before, forked, after = ThreadPoolExecutor(1).submit(task).result(30)
    assert forked == (0, "")
    assert before == after
    assert all_connections() == ()
    assert not postgres.left()


@pytest.mark.parametrize("child", CHILDREN)
@pytest.mark.usefixtures("watch_every_thread")
def test_beside_a_thread_that_holds_one(child: Callable[[], None], alias: str) -> None:
    """A connection that another thread holds while the main thread forks goes on as it was."""
    check_beside_a_thread(child, alias)


@pytest.mark.usefixtures("watch_every_thread")
def test_child_that_collects(alias: str) -> None:
    """The same when the child collects garbage, the other thread's wrapper among it."""
    check_beside_a_thread(gc.collect, alias)


def check_beside_a_thread(child: Callable[[], object], alias: str) -> None:
    connected, forked = threading.Event(), threading.Event()
    pids: list[int] = []

    def hold() -> None:
        pids.append(server_pid(alias))
        connected.set()
        assert forked.wait(30)
        pids.append(server_pid(alias))

    thread = threading.Thread(target=hold)
    thread.start()
    assert connected.wait(10)
    try:
        assert fork(child) == (0, "")
    finally:
        forked.set()
        thread.join(10)
    assert len(pids) == 2
    assert len(set(pids)) == 1
    assert wait_until(all_connections, lambda found: not found) == ()


@pytest.mark.usefixtures("watch_every_thread")
def test_child_works_with_a_connection_of_its_own(postgres: PostgresObserver) -> None:
    """A child that drops the parent's wrapper connects anew, is counted, and closes only its own."""
    before = server_pid("default")
    inherited: list[Any] = []

    def child() -> None:
        inherited.append(connections["default"].connection)  # kept: its end would be the driver's
        connections["default"].connection = None
        del connections["default"]
        Entry.objects.create(name="of the child")
        (info,) = all_connections()
        assert info.backend_pid == server_pid("default") != before
        ThreadPoolExecutor(1).submit(Entry.objects.count).result(10)
        connection.close()
        assert all_connections() == ()

    assert fork(child) == (0, "")
    assert server_pid("default") == before
    assert Entry.objects.count() == 1
    assert wait_until(postgres.backends, lambda pids: pids == {before}) == {before}


# An executor that was made before a fork works in the child, with threads of its own.


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="made-before") as pool:
        yield pool


def check(child: Callable[[], object]) -> None:
    assert fork(child) == (0, "")


def thread_name() -> str:
    return threading.current_thread().name


def test_works_in_the_child(pool: ThreadPoolExecutor) -> None:
    """The child's tasks run in its own threads, on its own connections, and leave none."""
    of_parent = set(pool.map(lambda _: server_pid("default"), range(4)))

    def child() -> None:
        assert list(pool.map(lambda number: Entry.objects.count() + number, range(20))) == [*range(20)]
        assert pool.submit(server_pid, "default").result(10) not in of_parent
        assert pool.submit(thread_name).result(10).startswith("made-before_")
        drain()
        assert all_connections() == ()
        pool.shutdown()

    check(child)
    assert pool.submit(Entry.objects.count).result(10) == 0


def test_standard_class() -> None:
    """Tasks of the standard pool, in a child that was forked when it had threads, never run."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(int).result(10)

    def child() -> None:
        with pytest.raises(concurrent.futures.TimeoutError):
            pool.submit(int).result(0.2)

    check(child)
    pool.shutdown()


def test_busy_in_the_parent(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """Work that runs or waits in the parent is done there alone; the child is idle and works."""
    ran_in: list[int] = []
    gates = [pool.submit(gate) for _ in range(2)]
    queued = [pool.submit(lambda: ran_in.append(os.getpid())) for _ in range(10)]
    gate.wait_for(2)

    def child() -> None:
        drain(5)
        assert pool.submit(int, 7).result(10) == 7
        pool.shutdown()
        assert not ran_in

    check(child)
    gate.open()
    assert concurrent.futures.wait([*gates, *queued], 10).not_done == set()
    assert ran_in == [os.getpid()] * 10


def test_nobody_has_to_ask_in_the_child(
    pool: ThreadPoolExecutor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The parent's futures are thrown away in the child, or there at its end, without a word."""
    failed = pool.submit(int, "x")
    concurrent.futures.wait([failed], 10)
    futures = [pool.submit(gate) for _ in range(4)]
    gate.wait_for(2)

    def child() -> None:
        nonlocal failed
        assert concurrent.futures.wait(futures, 10).not_done == set()
        failed = futures[0]
        _tell_all()  # as at exit
        assert caplog.records == []

    check(child)
    assert isinstance(failed.exception(), ValueError)
    gate.open()


def test_futures_of_the_parent(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """In the child, a future that is not done fails at once and says why; its callbacks do not run."""
    called: list[int] = []
    done = pool.submit(int, 3)
    assert done.result(10) == 3
    futures = [pool.submit(gate) for _ in range(4)]
    for future in futures:
        future.add_done_callback(lambda _: called.append(os.getpid()))
    gate.wait_for(2)

    def child() -> None:
        assert done.result(10) == 3
        assert concurrent.futures.wait(futures, 10).not_done == set()
        for future in futures:
            with pytest.raises(ExecutorError, match=f"parent process.*pid={os.getppid()}"):
                future.result(10)
        pool.submit(int).result(10)
        assert not called

    check(child)
    gate.open()
    assert concurrent.futures.wait(futures, 10).not_done == set()
    pool.shutdown()
    assert called == [os.getpid()] * 4


def test_shut_down_before() -> None:
    """An executor that was shut down refuses tasks in the child too."""
    pool, immediate = ThreadPoolExecutor(1), ImmediateExecutor()
    pool.submit(int).result(10)
    pool.shutdown()
    immediate.shutdown()

    def child() -> None:
        for executor in (pool, immediate):
            with pytest.raises(RuntimeError, match="after shutdown"):
                executor.submit(int)
        pool.shutdown()

    check(child)


def test_initializer() -> None:
    """The child's threads run the initializer anew, one that had failed in the parent too."""
    parent = os.getpid()
    ran_in: list[int] = []

    def initializer() -> None:
        ran_in.append(os.getpid())
        if os.getpid() == parent:
            raise RuntimeError("only in the parent")

    pool = ThreadPoolExecutor(1, initializer=initializer)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        pool.submit(int).result(10)

    def child() -> None:
        assert pool.submit(int, 5).result(10) == 5
        assert ran_in == [parent, os.getpid()]

    check(child)
    with pytest.raises(concurrent.futures.BrokenExecutor):
        pool.submit(int)


def test_settings_stay() -> None:
    """The number of threads, their names, conn_max_idle and inherit_context are what they were."""
    pool = ThreadPoolExecutor(3, conn_max_idle=60, inherit_context=False)
    name = pool.submit(thread_name).result(10)

    def child() -> None:
        barrier = threading.Barrier(3)
        names = pool.map(lambda _: (barrier.wait(10), thread_name())[1], range(3))
        assert sorted(names) == [f"{name[:-1]}{number}" for number in range(3)]
        waiting = [pool.submit(threading.Barrier(4).wait, 0.1) for _ in range(4)]
        assert all(future.exception(10) for future in waiting)
        pool.submit(Entry.objects.count).result(10)
        assert len(all_connections()) == 1
        drain()
        assert all_connections() == ()

    check(child)


def test_run_inline_and_immediate() -> None:
    """What runs in its caller's thread does so in the child, after the initializer there."""
    ran_in: list[int] = []
    pool = ThreadPoolExecutor(1, initializer=lambda: ran_in.append(os.getpid()))
    immediate = ImmediateExecutor()

    def child() -> None:
        assert pool.submit(threading.get_ident).result(0) == threading.get_ident()
        assert immediate.submit(threading.get_ident).result(0) == threading.get_ident()
        assert ran_in == [os.getppid(), os.getpid()]

    with run_inline():
        pool.submit(int)
        check(child)
    assert pool.submit(threading.get_ident).result(10) != threading.get_ident()


def test_collected_executor() -> None:
    """Work that an executor has left behind in the parent is not waited for in the child."""
    gate = Gate()
    ThreadPoolExecutor(1, thread_name_prefix="left-behind").submit(gate)
    gate.wait_for()
    check(lambda: drain(1))
    gate.open()
    drain()


def test_grandchild(pool: ThreadPoolExecutor) -> None:
    """A child that has used the executor forks again."""
    pool.submit(Entry.objects.count).result(10)

    def child() -> None:
        assert pool.submit(Entry.objects.count).result(10) == 0
        assert fork(lambda: pool.submit(Entry.objects.count).result(10)) == (0, "")
        assert pool.submit(Entry.objects.count).result(10) == 0

    check(child)


# After a fork, the sessions of the parent's threads live as long as the parent wants, and no longer.


SERVERS = {
    "default": "postgres",
    "mariadb": "mariadb",
    "redis": "redis",
    "django-redis": "redis",
    "memcached": "memcached",
}

PARENT = """
import gc, os, sys, threading
os.register_at_fork(after_in_child=gc.collect)  # before any other handler in the child
from django_executors import ThreadPoolExecutor
from tests.support.forks import exit_code, quiet_fork, session
from tests.projects.testapp.models import Entry

ALIAS, HOLDER = {alias!r}, {holder!r}
pool = ThreadPoolExecutor(2)
connected, go_on = threading.Semaphore(0), threading.Event()
sessions, pids = [], []

def hold():
    before = session(ALIAS)
    connected.release()
    assert go_on.wait(40)
    sessions.append((before, session(ALIAS)))

def fork_in_a_task():
    before = session(ALIAS)
    pids.append(quiet_fork())
    if pids != [0]:
        assert exit_code(pids[0]) == 0
        sessions.append((before, session(ALIAS)))

if HOLDER == "pool":
    futures = [pool.submit(hold) for _ in range(2)]
    assert connected.acquire(timeout=10) and connected.acquire(timeout=10)
elif HOLDER == "thread":
    thread = threading.Thread(target=hold)
    thread.start()
    assert connected.acquire(timeout=10)
if HOLDER == "task":
    pool.submit(fork_in_a_task).result(30)
else:
    pids.append(quiet_fork())
if pids == [0]:
    ended = threading.Thread(target=session, args=[ALIAS])
    ended.start()
    ended.join(10)
    assert [pool.submit(session, ALIAS).result(10) is not None for _ in range(3)] == [True] * 3
    gc.collect()
    sys.exit(0)
if HOLDER != "task":
    assert exit_code(pids[0]) == 0
go_on.set()
pool.shutdown()
if HOLDER == "thread":
    thread.join(10)
print([before == after for before, after in sessions])
"""


@pytest.fixture(params=SERVERS)
def alias_fork_sockets(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    request.getfixturevalue(SERVERS[name])  # skips where the server is not there
    return name


@pytest.mark.parametrize("holder", ["pool", "thread", "task"])
def test_sessions_live(holder: str, alias_fork_sockets: str) -> None:
    """They do when the child has ended threads, collected garbage, and ended with its interpreter."""
    finished = run_python(
        PARENT.format(alias=alias_fork_sockets, holder=holder),
        settings="tests.settings",
        warnings="ignore::ResourceWarning",  # of the plain thread's client
    )
    held = 2 if holder == "pool" else 1
    assert (finished.stdout, finished.stderr) == (f"{[True] * held}\n", "")
    assert finished.returncode == 0


def fork_a_child_that_waits() -> tuple[int, int]:
    """Return the child's pid, and what to close so that it ends."""
    reading, writing = os.pipe()
    pid = quiet_fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    return pid, writing


def test_server_notices_that_a_client_is_closed(cache_server: CacheServer) -> None:
    """A client that a worker closes is closed, though a child was forked while it was open."""
    with ThreadPoolExecutor(1) as pool:
        pid, writing = fork_while(pool, cache_server.alias)
        try:
            assert not cache_server.left()
        finally:
            os.close(writing)
            assert exit_code(pid) == 0


def fork_while(pool: ThreadPoolExecutor, alias_fork_sockets: str) -> tuple[int, int]:
    """Fork in this thread while a worker holds a session, and then let it go."""
    connected, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        session(alias_fork_sockets)
        connected.set()
        assert go_on.wait(30)

    future = pool.submit(hold)
    assert connected.wait(10)
    try:
        return fork_a_child_that_waits()
    finally:
        go_on.set()
        future.result(10)


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
        assert connected.wait(10)
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
    pid = int(finished.stdout)
    try:
        assert not postgres.left()
    finally:
        os.kill(pid, 9)


# What a task has open when it forks is its own; the child opens its own.


@pytest.fixture
def pool_fork_in_a_task() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool_fork_in_a_task:
        yield pool_fork_in_a_task


@pytest.mark.parametrize("alias", ["default", "mariadb"])
def test_child_connects_anew(
    alias: str, pool_fork_in_a_task: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    """In a transaction too: the child's queries go to a session of its own, in none."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def task() -> tuple[object, ...]:
        with transaction.atomic(using=alias):
            Entry.objects.using(alias).create(name="of the parent")
            before = server_pid(alias)

            def child() -> None:
                assert all_connections() == ()
                with transaction.atomic(using=alias):
                    assert not transaction.get_autocommit(using=alias)
                    assert server_pid(alias) != before
                assert not Entry.objects.using(alias).exists()
                with transaction.atomic(using=alias):
                    Entry.objects.using(alias).create(name="of the child")
                (info,) = all_connections()
                assert info.executor is None
                assert pool_fork_in_a_task.submit(Entry.objects.using(alias).count).result(10) == 1
                drain()

            return fork(child), server_pid(alias) == before, Entry.objects.using(alias).count()

    assert pool_fork_in_a_task.submit(task).result(30) == ((0, ""), True, 2)
    assert Entry.objects.using(alias).count() == 2


def test_child_leaves_the_atomic_block(pool_fork_in_a_task: ThreadPoolExecutor) -> None:
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

    assert pool_fork_in_a_task.submit(task).result(30) == (0, 1)


def test_pool_of_django(pool_fork_in_a_task: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """The child gets no connection out of the parent's pool: Django makes it one of its own."""

    def backend() -> int:
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid: int = cursor.fetchone()[0]
            return pid

    pool_fork_in_a_task.submit(backend).result(10)
    of_parent = wait_until(lambda: postgres.backends("pooled"), lambda found: len(found) == 4)

    def child() -> None:
        assert pool_fork_in_a_task.submit(backend).result(10) not in of_parent

    assert fork(child) == (0, "")
    assert [pool_fork_in_a_task.submit(backend).result(10) in of_parent for _ in range(4)] == [True] * 4


def test_cache_clients(pool_fork_in_a_task: ThreadPoolExecutor, cache_server: CacheServer) -> None:
    """In the child of a worker, a cache has a new client, and the parent's goes on as it was."""
    alias = cache_server.alias

    def task() -> tuple[object, ...]:
        client, number = caches[alias], connection_of(alias)

        def child() -> None:
            assert caches[alias] is not client
            assert connection_of(alias) != number
            pool_fork_in_a_task.submit(use, alias).result(10)

        return fork(child), caches[alias] is client, connection_of(alias) == number

    assert pool_fork_in_a_task.submit(task).result(30) == ((0, ""), True, True)
    cache_server.assert_own_is_untouched()


def test_async_orm_before(pool_fork_in_a_task: ThreadPoolExecutor) -> None:
    """A task that has used Django's ORM in async code may do so in its child."""

    async def count() -> int:
        return await Entry.objects.acount()

    def task() -> tuple[object, ...]:
        assert asyncio.run(count()) == 0
        pid = quiet_fork()
        return pid, asyncio.run(count())

    pid, counted = pool_fork_in_a_task.submit(task).result(30)
    assert (exit_code(pid), counted) == (0, 0)  # type: ignore[arg-type]


# A fork while a worker keeps a connection for its next query.


def test_child_does_not_take_up_what_is_kept() -> None:
    """A child that is forked in a task connects anew; the parent goes on with what its worker kept."""

    def forks() -> tuple[set[int], int]:
        wrapper = connections["default"]
        read, write = os.pipe()
        child = quiet_fork()
        if child == 0:
            try:
                assert wrapper.connection is None
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid()")
                    os.write(write, f"{cursor.fetchone()[0]} {backend_pid()}".encode())
            finally:
                os._exit(0)
        os.close(write)
        exit_code(child)
        of_child = {int(pid) for pid in os.read(read, 40).split()}
        os.close(read)
        return of_child, backend_pid()

    kept, (of_child, of_parent) = one_after_the_other(backend_pid, forks)
    assert of_parent == kept
    assert of_child
    assert kept not in of_child
