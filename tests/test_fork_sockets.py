"""After a fork, the sessions of the parent's threads live as long as the parent wants, and no longer."""

from __future__ import annotations

import os
import threading

import pytest

from django_executors import ThreadPoolExecutor

from .cache_clients import CacheServer
from .forking import exit_code, quiet_fork, session
from .observers import PostgresObserver
from .subprocesses import run_python

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
from tests.forking import exit_code, quiet_fork, session
from tests.testapp.models import Entry

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
def alias(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    request.getfixturevalue(SERVERS[name])  # skips where the server is not there
    return name


@pytest.mark.parametrize("holder", ["pool", "thread", "task"])
def test_sessions_live(holder: str, alias: str) -> None:
    """They do when the child has ended threads, collected garbage, and ended with its interpreter."""
    finished = run_python(
        PARENT.format(alias=alias, holder=holder),
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


def fork_while(pool: ThreadPoolExecutor, alias: str) -> tuple[int, int]:
    """Fork in this thread while a worker holds a session, and then let it go."""
    connected, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        session(alias)
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
        from tests.forking import quiet_fork, session
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
