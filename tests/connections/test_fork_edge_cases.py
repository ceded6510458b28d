"""A fork in a worker: the child's main thread is one that was a worker of the parent's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db.backends.signals import connection_created
from django.utils import translation
from django.utils.translation import trans_real

from django_executors import ExecutorError, ThreadPoolExecutor, all_connections
from django_executors.testing import drain
from tests.projects.testapp.models import Entry
from tests.support.forks import exit_code, fork, quiet_fork, server_pid
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver

#: To a child's parent: what ran in the child.
_reading, _writing = os.pipe()
os.set_blocking(_reading, False)


def tell(what: str) -> None:
    os.write(_writing, f"{what} ".encode())


@pytest.fixture
def told() -> Iterator[Callable[[], list[str]]]:
    def read() -> list[str]:
        try:
            return os.read(_reading, 1000).decode().split()
        except BlockingIOError:
            return []

    yield read
    assert not read()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def raise_error() -> None:
    raise LookupError("of the child")


ENDINGS: dict[str, tuple[Callable[[], object], int]] = {
    "returns": (int, 0),
    "raises": (raise_error, 1),
    "sys.exit()": (sys.exit, 0),
    "sys.exit(3)": (lambda: sys.exit(3), 3),
    "sys.exit(words)": (lambda: sys.exit("words"), 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_child_that_comes_back(
    ending: str, pool: ThreadPoolExecutor, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    """The child ends with its task: it runs no callback, and nothing of what is queued."""
    end, code = ENDINGS[ending]
    parent = os.getpid()
    ran_in: list[int] = []

    def forks() -> int:
        pid = quiet_fork()
        return pid or end()  # type: ignore[return-value]

    def note(_: object = None) -> None:
        ran_in.append(os.getpid())
        if os.getpid() != parent:
            print("not the child's to do", file=sys.stderr, flush=True)

    pool.submit(gate)
    gate.wait_for()
    forked = pool.submit(forks)
    forked.add_done_callback(note)
    queued = [pool.submit(note) for _ in range(3)]
    gate.open()
    assert exit_code(forked.result(30)) == code
    assert [future.result(10) for future in queued] == [None] * 3
    assert ran_in == [parent] * 4
    said = capfd.readouterr().err
    assert "not the child's" not in said
    assert ("LookupError: of the child" in said) == (ending == "raises")
    assert ("words" in said) == (ending == "sys.exit(words)")
    assert "CRITICAL" not in said


def test_child_waits_for_its_own_tasks(pool: ThreadPoolExecutor, told: Callable[[], list[str]]) -> None:
    """What the child has submitted is done before it ends."""

    def forks() -> int:
        pid = quiet_fork()
        if pid == 0:
            for number in range(3):
                pool.submit(lambda number=number: tell(f"{number}+{Entry.objects.count()}"))
        return pid

    assert exit_code(pool.submit(forks).result(30)) == 0
    assert told() == ["0+0", "1+0", "2+0"]


@pytest.mark.parametrize("where", ["initializer", "callback"])
def test_fork_in(where: str, told: Callable[[], list[str]]) -> None:
    """A child that was forked in an initializer or a callback ends where that worker asks for work."""
    pids: list[int] = []

    def forks(_: object = None) -> None:
        pids.append(quiet_fork())

    pool = ThreadPoolExecutor(1, initializer=forks if where == "initializer" else None)
    future = pool.submit(int)
    if where == "callback":
        gate = Gate()
        held = pool.submit(gate)
        gate.wait_for()
        future = pool.submit(int)
        future.add_done_callback(forks)
        for _ in range(3):
            pool.submit(lambda: None if os.getpid() == parent else tell("queued"))
        parent = os.getpid()
        gate.open()
        held.result(10)
    future.result(10)
    pool.shutdown()
    assert [exit_code(pid) for pid in pids] == [0]
    assert not told()


def test_child_of_an_initializer_that_raises(capfd: pytest.CaptureFixture[str]) -> None:
    """It ends with the traceback, as one of a task does, and its executor is not broken."""
    pids: list[int] = []

    def initializer() -> None:
        pids.append(quiet_fork())
        if pids == [0]:
            raise_error()

    with ThreadPoolExecutor(1, initializer=initializer) as pool:
        assert pool.submit(int).result(10) == 0
    assert exit_code(pids[0]) == 1
    said = capfd.readouterr().err
    assert "LookupError: of the child" in said
    assert "CRITICAL" not in said


# Locks that a thread of the parent's held at a fork: in the child nobody would ever release them.


@pytest.fixture
def pool_fork_locks() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool_fork_locks:
        yield pool_fork_locks


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[None]:
    """Have another thread hold this lock."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert let_go.wait(50)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(10)
        yield
    finally:
        let_go.set()
        holder.join(10)


@pytest.mark.parametrize("kind", ["submit", "keep", "asgiref", "signal"])
def test_lock_that_another_thread_held(kind: str, pool_fork_locks: ThreadPoolExecutor) -> None:
    """A pool's locks, and that of what Django keeps the language in, are not waited for."""
    pool_fork_locks.submit(int).result(10)
    language = vars(trans_real._active)
    locks = {
        "submit": pool_fork_locks._shutdown_lock,  # type: ignore[attr-defined]
        "keep": pool_fork_locks._queue._lock,
        "signal": connection_created.lock,
        "asgiref": language.get("_lock") or language["_thread_lock"],
    }

    def child() -> None:
        with translation.override("de"):
            found = pool_fork_locks.map(lambda _: Entry.objects.count(), range(10), timeout=10)
        assert list(found) == [0] * 10
        pool_fork_locks.shutdown()

    with held_elsewhere(locks[kind]):
        assert fork(child) == (0, "")


def test_lock_of_a_future(pool_fork_locks: ThreadPoolExecutor, gate: Gate) -> None:
    """Nor is that of a future which is not done."""
    future = pool_fork_locks.submit(gate)
    gate.wait_for()

    def child() -> None:
        assert isinstance(future.exception(10), ExecutorError)

    with held_elsewhere(future._condition):
        assert fork(child) == (0, "")


# Processes of `multiprocessing` that are forked beside a pool's workers, or by one of them.


def in_a_process(pool: ThreadPoolExecutor, sending: Any) -> None:
    """What runs in a process of `multiprocessing`."""
    found = list(pool.map(lambda number: Entry.objects.count() + number, range(5)))
    drain()
    sending.send((found, len(all_connections()), threading.active_count() > 1))


def use_multiprocessing(pool: ThreadPoolExecutor) -> tuple[object, int | None]:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=in_a_process, args=(pool, sending))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    assert receiving.poll(30)
    found = receiving.recv()
    process.join(30)
    return found, process.exitcode


def test_multiprocessing_from_main(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """A process that was forked beside the pool's workers uses the pool, and ends well."""
    pool.submit(Entry.objects.count).result(10)
    assert use_multiprocessing(pool) == (([0, 1, 2, 3, 4], 0, True), 0)
    assert not postgres.left()


def test_multiprocessing_from_a_task(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """So does one that was forked by a worker of that pool."""

    def task() -> tuple[object, int | None, bool]:
        before = server_pid("default")
        return *use_multiprocessing(pool), server_pid("default") == before

    assert pool.submit(task).result(60) == (([0, 1, 2, 3, 4], 0, True), 0, True)
    assert not postgres.left()
