"""One task and its future: exceptions that nobody retrieves, and waits that could never end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_executors import DeadlockError, ExecutorError, ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline
from tests.support.draining import query
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until


def fail() -> None:
    raise ValueError("of the task")


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("django_executors")]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def throw_away(pool: Any) -> None:
    pool.submit(fail)


def look_at_it(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 20)
    assert future.done()
    assert not future.running()
    assert not future.cancel()


def ask_too_early(pool: Any) -> None:
    gate = Gate()
    pool.submit(gate)
    future = pool.submit(fail)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            ask(0)
    gate.open()


def exit_in_task(pool: Any) -> None:
    def fail() -> None:
        raise SystemExit("of the task")

    pool.submit(fail)


@pytest.mark.parametrize("do", [throw_away, look_at_it, ask_too_early, exit_in_task])
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
        pool.submit(fail).result(20)


def ask_exception(pool: Any) -> None:
    assert isinstance(pool.submit(fail).exception(20), ValueError)


def ask_late(pool: Any) -> None:
    future = pool.submit(fail)
    concurrent.futures.wait([future], 20)
    with contextlib.suppress(ValueError):
        future.result()


def ask_by_callback(pool: Any) -> None:
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


def succeed(pool: Any) -> None:
    pool.submit(int)


def cancel(pool: Any) -> None:
    gate = Gate()
    pool.submit(gate)
    assert pool.submit(fail).cancel()
    gate.open()


def test_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """Not a word where somebody has asked, or where nothing has failed."""
    asks = [ask_result, ask_exception, ask_late, ask_by_callback, ask_by_map, ask_by_asyncio]
    for do in [*asks, succeed, cancel]:
        with ThreadPoolExecutor(1) as pool:
            do(pool)
        assert (do, logged(caplog)) == (do, [])
    gc.collect()
    assert logged(caplog) == []


def test_in_callers_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The same holds for ImmediateExecutor, and for a pool within `run_inline`."""
    with ThreadPoolExecutor(1) as pool, run_inline():
        for number, executor in enumerate((pool, ImmediateExecutor()), 1):
            throw_away(executor)
            ask_result(executor)
            ask_exception(executor)
            assert len(logged(caplog)) == number


def test_at_once(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged without a collection, and though the pool lives on."""
    pool.submit(fail)
    pool.submit(int).result(20)
    assert wait_until(lambda: len(logged(caplog)), within=20) == 1


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
        error = getattr(future, ask)(20)
    except ValueError as raised:
        error = raised
    pool.submit(int).result(20)  # the worker is done with it
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
    handler, logger = Broken(), logging.getLogger("django_executors")
    logger.addHandler(handler)
    try:
        pool.submit(fail)
        assert pool.submit(int).result(20) == 0
    finally:
        logger.removeHandler(handler)


@pytest.mark.slow
def test_at_the_end_of_the_process() -> None:
    """The error of a future that nobody holds is logged, though the process is about to end."""
    finished = run_python(
        "import logging; logging.basicConfig()\n"
        "from django_executors import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(1)\n"
        "pool.submit(int, 'y')\n",
        settings=None,
    )
    assert finished.returncode == 0
    assert finished.stderr.count("nobody has asked for its result") == 1


def test_a_broken_pool(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """What an initializer that fails has failed is told too, and what was asked for is not."""

    def broken_later() -> None:
        gate()
        raise OSError

    pool = ThreadPoolExecutor(1, initializer=broken_later)
    asked = pool.submit(query)
    for _ in range(5):
        pool.submit(fail)
    gate.open()
    assert isinstance(asked.exception(20), concurrent.futures.BrokenExecutor)
    pool.shutdown()
    del asked, pool
    said = "".join(record.getMessage() for record in logged(caplog))
    assert "test_task.fail" in said
    assert "query" not in said


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
        error = pool.submit(outer).exception(20)
        assert isinstance(error, DeadlockError)
        assert isinstance(error, ExecutorError)
        assert isinstance(error, RuntimeError)
        said, *waits, way_out = str(error).splitlines()
        assert said.endswith("could never end: executor=of the test workers=1 waiting=1 pending=1")
        outer_name = "tests.executors.test_task.test_one_worker.<locals>.outer"
        assert waits == [f"task={outer_name} waits for task=tests.executors.test_task.inner"]
        assert way_out == "Submit from outside of the pool's tasks, or to a second pool."
        assert children[0].result(20) == 7


def test_all_workers(postgres: PostgresObserver) -> None:
    """Of four tasks that all wait for a task of their own, one gets the error and the others go on."""
    barrier = threading.Barrier(4)

    def outer() -> int:
        query()
        barrier.wait(20)
        return pool.submit(inner).result()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(outer) for _ in range(4)]
        errors = [future.exception(20) for future in futures]
        assert errors.count(None) == 3
        assert [type(error) for error in errors if error] == [DeadlockError]
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
        assert pool.submit(outer).result(20) == "done"
        assert children[0].result(20) == 7


def with_room() -> int:
    """Another worker is free."""
    with ThreadPoolExecutor(2) as pool:
        return pool.submit(lambda: pool.submit(inner).result()).result(20)


def of_another_pool() -> int:
    """The task waits for a pool that is not its own."""
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        return pool.submit(lambda: other.submit(inner).result()).result(20)


def of_a_done_one() -> int:
    """What it asks for is there already."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(inner)
        concurrent.futures.wait([done], 20)
        return pool.submit(done.result).result(20)


def from_outside() -> int:
    """Threads that are no workers wait, as many as there are workers."""
    gate = Gate()
    with ThreadPoolExecutor(2) as pool, concurrent.futures.ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            pool.submit(gate)
        gate.wait_for(2)
        waiting = [threads.submit(pool.submit(inner).result) for _ in range(2)]
        gate.open()
        return max(each.result(20) for each in waiting)


def for_a_running_one() -> int:
    """One worker waits for what the other one does, which waits for nothing."""
    gate, asks = Gate(), threading.Event()

    def ask() -> int:
        asks.set()
        return running.result()

    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(lambda: (gate(), 7)[1])
        gate.wait_for()
        waiting = pool.submit(ask)
        assert asks.wait(20)
        gate.open()
        return waiting.result(20)


def with_a_timeout() -> int:
    """A wait with a timeout ends by itself, with the standard error, and then the others go on."""
    both_run = threading.Barrier(2)

    def patient() -> int:
        both_run.wait(20)
        return pool.submit(inner).result()

    def impatient() -> int:
        both_run.wait(20)
        child = pool.submit(inner)
        with pytest.raises(TimeoutError):
            child.result(0.05)
        return 7

    with ThreadPoolExecutor(2) as pool:
        return min(future.result(20) for future in [pool.submit(patient), pool.submit(impatient)])


@pytest.mark.parametrize(
    "wait",
    [with_room, of_another_pool, of_a_done_one, from_outside, for_a_running_one, with_a_timeout],
)
def test_no_deadlock(wait: Callable[[], int]) -> None:
    """Waits that can end go on as they do in the standard class."""
    assert wait() == 7


def test_many_rounds() -> None:
    """Whatever the timing: each task of such a pool ends, with its result or with the error."""

    def outer(depth: int) -> int:
        return 7 if depth == 0 else pool.submit(outer, depth - 1).result()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(25):
            futures = [pool.submit(outer, 2) for _ in range(4)]
            for future in futures:
                error = future.exception(20)
                assert error is None or isinstance(error, DeadlockError)
