"""The error of a task whose future is thrown away unasked is logged, once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from django_executors import (
    DeadlockError,
    ExecutorError,
    ImmediateExecutor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from django_executors.dask import DaskExecutor
from django_executors.testing import run_inline
from tests.support import process_tasks as tasks
from tests.support.draining import query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

LOGGER = "django_executors.execution.futures"


def fail() -> None:
    raise ValueError("of the task")


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == LOGGER]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def throw_away(pool: Any) -> None:
    pool.submit(fail)


def keep_for_a_while(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 10)
    del future


def ask_too_early(pool: Any) -> None:
    gate = Gate()
    pool.submit(gate)
    future = pool.submit(fail)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            ask(0)
    gate.open()


def ask_as_it_fails(pool: Any) -> None:
    """The time is over, and when that is said it has failed."""
    future = pool.submit(fail)
    concurrent.futures.wait([future], 10)
    over = mock.patch.object(concurrent.futures.Future, "result", side_effect=TimeoutError)
    with over, pytest.raises(TimeoutError):
        future.result(1)


def fail_to_cancel(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 10)
    assert not future.cancel()


def look_at_it(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 10)
    assert future.done()
    assert not future.running()
    repr(future)


def exit_in_task(pool: Any) -> None:
    def fail() -> None:
        raise SystemExit("of the task")

    pool.submit(fail)


SPEAKS = [
    throw_away,
    keep_for_a_while,
    ask_too_early,
    ask_as_it_fails,
    fail_to_cancel,
    look_at_it,
    exit_in_task,
]


@pytest.mark.parametrize("do", SPEAKS)
def test_speaks(do: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """One ERROR, with the traceback and the task's name, when nobody has asked."""
    with ThreadPoolExecutor(1) as pool:
        do(pool)
    (record,) = logged(caplog)
    assert record.levelname == "ERROR"
    assert "fail failed, and nobody has asked for its result" in record.getMessage()
    assert "task=tests.executors.test_task." in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "of the task"
    assert record.exc_info[2] is not None


def ask_result(pool: Any) -> None:
    with pytest.raises(ValueError, match="of the task"):
        pool.submit(fail).result(10)


def ask_exception(pool: Any) -> None:
    assert isinstance(pool.submit(fail).exception(10), ValueError)


def ask_by_callback(pool: Any) -> None:
    pool.submit(fail).add_done_callback(lambda _: None)


def ask_by_callback_before(pool: Any) -> None:
    gate = Gate()
    pool.submit(gate)
    pool.submit(fail).add_done_callback(lambda _: None)
    gate.open()


def ask_by_map(pool: Any) -> None:
    with pytest.raises(ValueError, match="of the task"):
        list(pool.map(lambda _: fail(), [1]))


def ask_by_asyncio(pool: Any) -> None:
    async def ask() -> None:
        with pytest.raises(ValueError, match="of the task"):
            await asyncio.get_running_loop().run_in_executor(pool, fail)

    asyncio.run(ask())


def ask_as_completed(pool: Any) -> None:
    for future in concurrent.futures.as_completed([pool.submit(fail)], 10):
        with contextlib.suppress(ValueError):
            future.result()


def ask_late(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 10)
    with contextlib.suppress(ValueError):
        future.result()


def ask_twice(pool: Any) -> None:
    future = pool.submit(fail)
    assert future.exception(10) is future.exception()


def succeed(pool: Any) -> None:
    pool.submit(int)


def cancel(pool: Any) -> None:
    gate = Gate()
    pool.submit(gate)
    assert pool.submit(fail).cancel()
    gate.open()


SILENT = [
    ask_result,
    ask_exception,
    ask_by_callback,
    ask_by_callback_before,
    ask_by_map,
    ask_by_asyncio,
    ask_as_completed,
    ask_late,
    ask_twice,
    succeed,
    cancel,
]


@pytest.mark.parametrize("do", SILENT)
def test_is_silent(do: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """Not a word where somebody has asked, or where nothing has failed."""
    with ThreadPoolExecutor(1) as pool:
        do(pool)
    gc.collect()
    assert logged(caplog) == []


@pytest.mark.parametrize("do", [throw_away, keep_for_a_while])
def test_in_callers_thread(do: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    """The same holds for ImmediateExecutor, and for a pool within `run_inline`."""
    do(ImmediateExecutor())
    assert len(logged(caplog)) == 1
    with ThreadPoolExecutor(1) as pool, run_inline():
        do(pool)
    assert len(logged(caplog)) == 2
    ask_result(ImmediateExecutor())
    ask_exception(ImmediateExecutor())
    assert len(logged(caplog)) == 2


def test_at_once(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """Without a collection, and before the pool's next task is done."""
    pool.submit(fail)
    pool.submit(int).result(10)
    assert wait_until(lambda: len(logged(caplog))) == 1


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_no_cycle(ask: str, pool: ThreadPoolExecutor) -> None:
    """The future of an error that was given out, or did not come in time, is let go at once."""
    gate = Gate()
    pool.submit(gate)
    future = pool.submit(fail)
    with pytest.raises(TimeoutError):
        getattr(future, ask)(0)
    gate.open()
    try:
        error = getattr(future, ask)(10)
    except ValueError as raised:
        error = raised
    pool.submit(int).result(10)  # the worker is done with it
    reference = weakref.ref(future)
    del future
    assert reference() is None
    assert isinstance(error, ValueError)


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("of the handler")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_broken_log_handler(pool: ThreadPoolExecutor) -> None:
    """A log handler that raises costs the pool nothing."""
    handler = Broken()
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        pool.submit(fail)
        assert pool.submit(int).result(10) == 0
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)


def test_at_the_end_of_the_process() -> None:
    """The error of a future that a module holds to the end is logged when the process ends."""
    finished = run_python(
        "import logging; logging.basicConfig()\n"
        "from django_executors import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(1)\n"
        "kept = pool.submit(int, 'x')\n"
        "pool.submit(int, 'y')\n",
        settings=None,
    )
    assert finished.returncode == 0
    assert finished.stderr.count("nobody has asked for its result") == 2


# What an executor that broke tells of the tasks that nobody has asked for: one record for all.


LOGGER = "django_executors.execution.futures"
SAID = (
    "tasks=6 (tests.support.process_tasks.a_lock x5, builtins.abs x1) failed as their executor broke, "
    "and nobody has asked for their results"
)


def submit_unasked(pool: Any) -> Any:
    """Return a future of which somebody asks, unlike of six others."""
    asked = pool.submit(tasks.names)
    for _ in range(5):
        pool.submit(tasks.a_lock)
    pool.submit(abs, -1)
    return asked


def a_failed_initializer(_: Path) -> Any:
    gate = Gate()

    def broken_later() -> None:
        gate()
        raise OSError

    pool = ThreadPoolExecutor(1, initializer=broken_later)
    asked = submit_unasked(pool)
    del pool  # which the standard class breaks only where somebody refers to it
    gate.open()
    return asked


def a_dead_process(tmp_path: Path) -> Any:
    pool = ProcessPoolExecutor(1)
    died = pool.submit(tasks.die_when_there_is_a_file, str(tmp_path / "go"))
    asked = submit_unasked(pool)
    (tmp_path / "go").touch()
    assert isinstance(died.exception(30), concurrent.futures.BrokenExecutor)
    return asked


@pytest.mark.parametrize("break_it", [a_failed_initializer, a_dead_process])
@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_told_once(
    break_it: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = break_it(tmp_path)
    assert isinstance(asked.exception(30), concurrent.futures.BrokenExecutor)
    del asked
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, SAID)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], concurrent.futures.BrokenExecutor)


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_a_lost_scheduler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that fail in a row are told together; how many those are is the network's to say."""
    executor = DaskExecutor(n_workers=1, threads_per_worker=1)
    running = executor.submit(tasks.wait_for_a_file, str(tmp_path / "go"))
    asked = submit_unasked(executor)
    link = executor._link
    assert link is not None
    link._client.close()
    assert isinstance(running.exception(30), concurrent.futures.BrokenExecutor)
    assert isinstance(asked.exception(30), concurrent.futures.BrokenExecutor)
    (tmp_path / "go").touch()
    executor.shutdown()
    told = "".join(record.getMessage() for record in caplog.records if record.name == LOGGER)
    assert sum(map(int, re.findall(r"a_lock x(\d)", told))) == 5
    assert told.count("builtins.abs x1") == 1


@pytest.mark.usefixtures("dask_sockets", "idle_before_and_after")
def test_told_at_exit() -> None:
    """Also of those whose futures are there until the end."""
    code = """
    from django_executors import ProcessPoolExecutor
    from tests.support import process_tasks as tasks

    pool = ProcessPoolExecutor(1, "fork")
    futures = [pool.submit(tasks.killed), *(pool.submit(abs, -1) for _ in range(20))]
    """
    said = run_python(code, settings="tests.settings_with_app").stderr
    assert said.count("nobody has asked") == 1
    assert "failed as their executor broke" in said


# A wait of a worker for its own pool that could never end gets `DeadlockError`.


def inner() -> int:
    return 7


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_one_worker(ask: str) -> None:
    """A task that waits for another in a pool of one hears which waits for which; the other one runs."""
    children: list[concurrent.futures.Future[int]] = []

    def outer() -> None:
        children.append(pool.submit(inner))
        getattr(children[0], ask)()

    with ThreadPoolExecutor(1, "of the test") as pool:
        error = pool.submit(outer).exception(10)
        assert isinstance(error, DeadlockError)
        assert isinstance(error, ExecutorError)
        assert isinstance(error, RuntimeError)
        said, *waits, way_out = str(error).splitlines()
        assert said.endswith("could never end: executor=of the test workers=1 waiting=1 pending=1")
        outer_name = "tests.executors.test_task.test_one_worker.<locals>.outer"
        assert waits == [f"task={outer_name} waits for task=tests.executors.test_task.inner"]
        assert way_out == "Submit from outside of the pool's tasks, or to a second pool."
        assert children[0].result(10) == 7


def test_all_workers(postgres: PostgresObserver) -> None:
    """Of four tasks that all wait for a task of their own, one gets the error and the others go on."""
    barrier = threading.Barrier(4)

    def outer() -> int:
        query()
        barrier.wait(10)
        return pool.submit(inner).result()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(outer) for _ in range(4)]
        errors = [future.exception(20) for future in futures]
        assert sorted(map(type, errors), key=repr) == sorted(
            [DeadlockError, *[type(None)] * 3], key=repr
        )
        assert not postgres.left()


def test_a_caught_error() -> None:
    """A task that catches it may go on, each further wait hears it too, and what it waited for runs."""
    children: list[concurrent.futures.Future[int]] = []

    def outer() -> str:
        children.append(pool.submit(inner))
        for _ in range(3):
            with pytest.raises(DeadlockError):
                children[0].result()
        return "done"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outer).result(10) == "done"
        assert children[0].result(10) == 7


def test_a_ring() -> None:
    """Tasks that wait for one another, or for themselves, get it, however many workers are free."""
    futures: list[concurrent.futures.Future[Any]] = []
    all_there = threading.Event()

    def wait_for(number: int) -> Any:
        assert all_there.wait(10)
        return futures[number].result()

    with ThreadPoolExecutor(8) as pool:
        futures += [pool.submit(wait_for, number) for number in (1, 2, 0)]
        futures.append(pool.submit(wait_for, 3))
        all_there.set()
        assert isinstance(futures[3].exception(10), DeadlockError)
        assert all(isinstance(future.exception(10), DeadlockError) for future in futures[:3])


def test_no_trace_of_a_caught_error(gate: Gate) -> None:
    """A worker that has caught it waits no more, and so another one may."""

    def catch() -> None:
        with pytest.raises(DeadlockError):
            futures[0].result()
        gate()

    futures: list[concurrent.futures.Future[Any]] = []
    with ThreadPoolExecutor(2) as pool:
        ready = threading.Event()
        futures.append(pool.submit(lambda: ready.wait(10) and catch()))
        ready.set()
        gate.wait_for()
        waiting = pool.submit(lambda: pool.submit(inner).result())
        gate.open()
        assert waiting.result(10) == 7


def with_a_callback(pool: ThreadPoolExecutor) -> int:
    """A callback waits for a task that asks for the result of the one that it is of, which is there."""
    gate, results = Gate(), []

    def callback(future: concurrent.futures.Future[int]) -> None:
        def ask() -> int:
            wait_until(lambda: pool._work.waits._futures)
            return future.result()

        results.append(pool.submit(ask).result())

    first = pool.submit(lambda: (gate(), 7)[1])
    first.add_done_callback(callback)
    gate.open()
    assert wait_until(lambda: results, within=10) == [7]
    return first.result(10)


def with_room(pool: ThreadPoolExecutor) -> int:
    """Another worker is free."""
    return pool.submit(lambda: pool.submit(inner).result()).result(10)


def of_another_pool(pool: ThreadPoolExecutor) -> int:
    """The task waits for a pool that is not its own."""
    with ThreadPoolExecutor(1) as other:
        futures = [pool.submit(lambda: other.submit(inner).result()) for _ in range(4)]
        return max(future.result(10) for future in futures)


def of_a_done_one(pool: ThreadPoolExecutor) -> int:
    """What it asks for is there already."""
    done = pool.submit(inner)
    done.result(10)
    barrier = threading.Barrier(2)

    def ask() -> int:
        barrier.wait(10)
        return done.result()

    return max(future.result(10) for future in [pool.submit(ask), pool.submit(ask)])


def from_outside(pool: ThreadPoolExecutor) -> int:
    """Threads that are no workers wait, as many as there are workers."""
    gate = Gate()
    for _ in range(2):
        pool.submit(gate)
    gate.wait_for(2)
    future = pool.submit(inner)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(future.result) for _ in range(2)]
        gate.open()
        return max(each.result(10) for each in waiting)


def for_a_running_one(pool: ThreadPoolExecutor) -> int:
    """One worker waits for what the other one does, which waits for nothing."""
    gate = Gate()
    running = pool.submit(lambda: (gate(), 7)[1])
    gate.wait_for()
    waiting = pool.submit(lambda: running.result())
    assert wait_until(lambda: pool.stats().busy) == 2
    gate.open()
    return waiting.result(10)


@pytest.mark.parametrize(
    "do", [with_a_callback, with_room, of_another_pool, of_a_done_one, from_outside, for_a_running_one]
)
def test_is_silent_deadlocks(do: Callable[[ThreadPoolExecutor], int]) -> None:
    """Waits that can end go on as they always did."""
    with ThreadPoolExecutor(2) as pool:
        assert do(pool) == 7


def test_with_a_timeout() -> None:
    """A wait with a timeout ends by itself, with the standard error, and then the others go on."""

    both_run = threading.Barrier(2)

    def patient() -> int:
        both_run.wait(10)
        return pool.submit(inner).result()

    def outer() -> int:
        both_run.wait(10)
        child = pool.submit(inner)
        with pytest.raises(TimeoutError):
            child.result(0.05)
        return 7

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(patient), pool.submit(outer)]
        assert [future.result(10) for future in futures] == [7, 7]


def test_many_rounds() -> None:
    """Whatever the timing: each task of such a pool ends, with its result or with the error."""

    def outer(depth: int) -> int:
        return 7 if depth == 0 else pool.submit(outer, depth - 1).result()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(200):
            futures = [pool.submit(outer, 2) for _ in range(4)]
            for future in futures:
                error = future.exception(20)
                assert error is None or isinstance(error, DeadlockError)
