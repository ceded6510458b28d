"""A fork in a worker: the child's main thread is one that was a worker of the parent's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from django_executors import ThreadPoolExecutor

from .forking import exit_code, quiet_fork
from .gates import Gate
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")

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
