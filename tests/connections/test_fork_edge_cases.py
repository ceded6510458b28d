"""A fork in a worker, beside other threads that hold locks, and where no handler runs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.utils import translation

from django_executors import ExecutorError, ThreadPoolExecutor, all_connections
from django_executors.testing import drain
from tests.projects.testapp.models import Entry
from tests.support.forks import exit_code, fork, quiet_fork
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def raise_error() -> None:
    raise LookupError("of the child")


ENDINGS: dict[str, tuple[Callable[[], object], int, str]] = {
    "returns": (int, 0, ""),
    "raises": (raise_error, 1, "LookupError: of the child"),
    "sys.exit()": (sys.exit, 0, ""),
    "sys.exit(3)": (lambda: sys.exit(3), 3, ""),
    "sys.exit(words)": (lambda: sys.exit("words"), 1, "words"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_child_that_comes_back(
    ending: str, pool: ThreadPoolExecutor, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    """The child ends with its task: it runs no callback, and nothing of what is queued."""
    end, code, words = ENDINGS[ending]
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
    assert exit_code(forked.result(60)) == code
    assert [future.result(30) for future in queued] == [None] * 3
    assert ran_in == [parent] * 4
    said = capfd.readouterr().err.splitlines()
    assert said[-1:] == ([words] if words else [])
    assert not {"not the child's to do", "CRITICAL"} & {*said}


def test_child_waits_for_its_own_tasks(
    pool: ThreadPoolExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the child has submitted is done before it ends."""

    def forks() -> int:
        pid = quiet_fork()
        if pid == 0:
            for number in range(3):
                pool.submit(lambda number=number: os.write(1, b"%d " % (number + Entry.objects.count())))
        return pid

    assert exit_code(pool.submit(forks).result(60)) == 0
    assert capfd.readouterr().out == "0 1 2 "


def test_fork_in_a_callback(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """A child that was forked in a callback ends where that worker asks for work, and gets none."""
    parent = os.getpid()
    pids: list[int] = []
    ran_in: list[int] = []

    def task() -> None:
        if os.getpid() != parent:
            os._exit(7)
        ran_in.append(parent)

    pool.submit(gate)
    gate.wait_for()
    pool.submit(int).add_done_callback(lambda _: pids.append(quiet_fork()))
    for _ in range(3):
        pool.submit(task)
    gate.open()
    pool.shutdown()
    assert [exit_code(pid) for pid in pids] == [0]
    assert ran_in == [parent] * 3


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_fork_in_an_initializer(ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A child that was forked in an initializer ends there too; the parent's executor is not broken."""
    end, code, words = ENDINGS[ending]
    pids: list[int] = []

    def initializer() -> None:
        pids.append(quiet_fork())
        if pids == [0]:
            end()

    with ThreadPoolExecutor(1, initializer=initializer) as pool:
        assert pool.submit(int).result(30) == 0
    assert exit_code(pids[0]) == code
    said = capfd.readouterr().err.splitlines()
    assert said[-1:] == ([words] if words else [])
    assert "CRITICAL" not in said


# Locks that a thread of the parent's held at a fork: in the child nobody would ever release them.


def test_locks_that_another_thread_held(pool: ThreadPoolExecutor, gate: Gate) -> None:
    """In the child nobody waits for a pool's locks, or for a future's."""
    future = pool.submit(gate)
    gate.wait_for()
    locks: list[Any] = [
        pool._queue.lock,
        pool._shutdown_lock,  # type: ignore[attr-defined]
        future._condition,
    ]

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            elsewhere()

    def child() -> None:
        assert isinstance(future.exception(30), ExecutorError)
        with translation.override("de"):
            found = pool.map(lambda _: Entry.objects.count(), range(10), timeout=30)
        assert list(found) == [0] * 10
        pool.shutdown()

    elsewhere = Gate()
    holder = threading.Thread(target=hold)
    holder.start()
    elsewhere.wait_for()
    try:
        assert fork(child) == (0, "")
    finally:
        elsewhere.open()
        holder.join(30)


# A fork in C, as uWSGI does it: no handler of Python's runs, neither before nor in the child.


FORKED_IN_C = """
import ctypes, json, os, signal
from django_executors import ThreadPoolExecutor, all_connections
from tests.support.endings import backend_pid

pool = ThreadPoolExecutor(2, conn_max_idle=60)
of_parent = pool.submit(backend_pid).result(20)
reading, writing = os.pipe()
child = ctypes.PyDLL(None).fork()  # holding the interpreter's lock, as a server does
if child == 0:
    signal.alarm(30)
    try:
        said = [pool.submit(backend_pid).result(20) for _ in range(2)]
        pool.shutdown()
        said += [len(all_connections())]
    except BaseException as error:
        said = repr(error)
    os.write(writing, json.dumps(said).encode())
    os._exit(0)
os.close(writing)
with os.fdopen(reading) as words:
    said = json.loads(words.read() or '"nothing"')
os.waitpid(child, 0)
goes_on = pool.submit(backend_pid).result(20) == of_parent
pool.shutdown()
print(json.dumps([said, of_parent, goes_on]))
"""


def test_fork_in_c(postgres: PostgresObserver) -> None:
    """A pool that was used before works in the child, and the parent's connection goes on as it was."""
    ended = run_python(FORKED_IN_C, settings="tests.settings")
    assert (ended.returncode, ended.stderr) == (0, "")
    said, of_parent, goes_on = json.loads(ended.stdout)
    first, second, left = said
    assert first == second != of_parent
    assert (left, goes_on) == (0, True)
    assert not postgres.left()


# Processes of `multiprocessing` that are forked beside a pool's workers, or by one of them.


def in_a_process(pool: ThreadPoolExecutor, sending: Any) -> None:
    """Run in a process of `multiprocessing`."""
    found = list(pool.map(lambda number: Entry.objects.count() + number, range(5), timeout=30))
    drain()
    sending.send((found, all_connections()))


def use_multiprocessing(pool: ThreadPoolExecutor) -> tuple[object, int | None]:
    Entry.objects.count()
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


def test_multiprocessing(pool: ThreadPoolExecutor) -> None:
    """A process that was forked beside the pool's workers, or by one, uses the pool and ends well."""
    ended_well = ([0, 1, 2, 3, 4], ()), 0
    assert pool.submit(use_multiprocessing, pool).result(60) == ended_well
    assert use_multiprocessing(pool) == ended_well
