"""An executor that was made before a fork works in the child, with threads of its own."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from django_executors import ExecutorError, ImmediateExecutor, ThreadPoolExecutor, all_connections
from django_executors.execution.futures import _tell_all
from django_executors.testing import drain, run_inline

from .forking import fork, server_pid
from .gates import Gate
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


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
