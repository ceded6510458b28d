"""The error of a task whose future is thrown away unasked is logged, once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline

from .gates import Gate
from .subprocesses import run_python
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")

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
    assert "task=tests.test_unheard_errors." in record.getMessage()
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
