"""A task in its caller's thread: what its future says, and that nothing of it lives on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline

from .in_callers_thread import fail
from .subprocesses import run_python
from .testapp.models import Entry


def test_runs_at_once_in_the_callers_thread() -> None:
    """`submit` returns a future that is done, and the task has run in the caller's thread."""
    future = ImmediateExecutor().submit(
        lambda *args, **kwargs: (threading.get_ident(), args, kwargs), 1, b=2
    )
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert future.result(0) == (threading.get_ident(), (1,), {"b": 2})
    assert future.exception(0) is None


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_exceptions_stay_in_the_future(kind: type[BaseException]) -> None:
    """A task's exception is the future's, SystemExit too, and the next task runs."""
    executor, error = ImmediateExecutor(), kind("of the task")
    future = executor.submit(fail, error)
    assert future.exception(0) is error
    with pytest.raises(kind, match="of the task"):
        future.result(0)
    assert executor.submit(abs, -1).result(0) == 1


@pytest.mark.parametrize("executor", [ImmediateExecutor, ThreadPoolExecutor])
def test_keyboard_interrupt_is_raised(executor: Callable[[], concurrent.futures.Executor]) -> None:
    """Ctrl-C ends the caller, through tasks in tasks; the executor goes on, if the caller does."""
    pool, outer = executor(), []
    with run_inline():
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            outer.append(pool.submit(lambda: pool.submit(fail, KeyboardInterrupt("Ctrl-C"))))
        assert outer == []
        assert pool.submit(abs, -1).result(0) == 1


def test_a_task_that_is_no_function() -> None:
    """What cannot be called is the future's error, as in the standard pool."""
    assert isinstance(ImmediateExecutor().submit(5).exception(0), TypeError)  # type: ignore[arg-type]


def test_callbacks_run_as_they_are_added() -> None:
    """A done-callback is called at once, with the future, in the caller's thread."""
    called: list[tuple[object, int]] = []
    future = ImmediateExecutor().submit(abs, -1)
    future.add_done_callback(lambda done: called.append((done, threading.get_ident())))
    assert called == [(future, threading.get_ident())]


def test_a_callback_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A callback's exception is logged as the standard class logs it, and the next one is called."""
    called: list[object] = []
    future = ImmediateExecutor().submit(abs, -1)
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future.add_done_callback(lambda _: fail(ValueError("of the callback")))
        future.add_done_callback(called.append)
    (record,) = caplog.records
    assert record.name == "concurrent.futures"
    assert record.getMessage().startswith("exception calling callback for")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "of the callback"
    assert called == [future]


def test_wait_and_as_completed() -> None:
    """`wait` and `as_completed` take its futures, and wait for none."""
    executor = ImmediateExecutor()
    futures = [executor.submit(abs, -1), executor.submit(fail, ValueError())]
    assert concurrent.futures.wait(futures, 0) == (set(futures), set())
    first = concurrent.futures.wait(futures, 0, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert first.not_done == set()
    assert set(concurrent.futures.as_completed(futures, 0)) == set(futures)


def test_map() -> None:
    """`map` runs the calls in order and gives their results in order, also of several iterables."""
    ran: list[int] = []

    def task(base: int, exponent: int) -> int:
        ran.append(base)
        return base**exponent

    results = ImmediateExecutor().map(task, [3, 1, 2], [2, 5, 3], timeout=0, chunksize=2)
    assert ran == [3, 1, 2]
    assert list(results) == [9, 1, 8]


def test_map_raises_where_the_task_did() -> None:
    """`map` raises a task's exception in its place; the tasks behind it have run, as in a pool."""
    ran: list[int] = []

    def task(number: int) -> float:
        ran.append(number)
        return 1 / number

    results = ImmediateExecutor().map(task, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert ran == [1, 2, 0, 4]


def test_tasks_may_submit_tasks() -> None:
    """A task waits for what it has submitted itself, where a pool of one worker would wait for ever."""
    executor = ImmediateExecutor()

    def depth(left: int) -> int:
        return executor.submit(depth, left - 1).result(0) + 1 if left else 0

    assert executor.submit(depth, 20).result(0) == 20
    assert (
        sum(executor.submit(lambda: sum(executor.map(depth, [1, 2, 3]))).result(0) for _ in "ab") == 12
    )


def test_submit_after_shutdown() -> None:
    """After `shutdown` it refuses tasks in the standard class's words, from inside a task too."""
    with ImmediateExecutor() as executor:
        assert executor.submit(abs, -1).result(0) == 1

        def shut_down_and_submit() -> None:
            executor.shutdown(wait=True, cancel_futures=True)
            executor.submit(abs, -1)

        refused = executor.submit(shut_down_and_submit)
    for call in (refused.result, lambda: executor.submit(abs, -1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown$"):
            call()


@pytest.mark.parametrize("executor", ["ImmediateExecutor()", "ThreadPoolExecutor(1)"])
def test_works_without_settings(executor: str) -> None:
    """Without settings it runs tasks and callbacks that use no database, and configures nothing."""
    finished = run_python(
        f"""
        from django.conf import settings
        from django_executors import ImmediateExecutor, ThreadPoolExecutor
        from django_executors.testing import run_inline
        with run_inline(), {executor} as executor:
            executor.submit(abs, -1).add_done_callback(lambda future: print(future.result()))
            print(list(executor.map(abs, [-2, -3])))
        assert not settings.configured
        """,
        settings=None,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "1\n[2, 3]\n", "")


def test_under_an_event_loop() -> None:
    """Where a loop runs, a task may be awaited; one that uses the ORM gets Django's own refusal."""

    async def main() -> int:
        executor, loop = ImmediateExecutor(), asyncio.get_running_loop()
        with pytest.raises(SynchronousOnlyOperation):
            await loop.run_in_executor(executor, Entry.objects.count)
        return await asyncio.wrap_future(executor.submit(abs, -1))

    connection.ensure_connection()
    assert asyncio.run(main()) == 1


# No cycle


class Witness:
    """Lives as long as the frame that it is in."""


def witnessed(
    kind: type[BaseException], submit: Callable[..., concurrent.futures.Future[None]]
) -> weakref.ref[Witness]:
    """Have a task fail beside a witness, ask for the result, and let go of everything."""
    references: list[weakref.ref[Witness]] = []

    def task() -> None:
        witness = Witness()
        references.append(weakref.ref(witness))
        raise kind

    with contextlib.suppress(kind):
        submit(task).result(0)  # a name for the future would be a cycle of this frame's own
    (reference,) = references
    return reference


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("inside", ["nothing", "a task", "run_inline"])
def test_no_cycle_holds_an_exception(inside: str, kind: type[BaseException]) -> None:
    """With its future, a task's exception goes, and the frames and their rows with it."""
    executor = ImmediateExecutor()
    if inside == "nothing":
        assert witnessed(kind, executor.submit)() is None
    elif inside == "a task":
        outer = executor.submit(witnessed, kind, executor.submit)
        assert outer.result(0)() is None
    else:
        with run_inline():
            assert witnessed(kind, ThreadPoolExecutor(1, initializer=int).submit)() is None


@pytest.mark.usefixtures("collector_off")
def test_no_cycle_holds_an_exception_of_map() -> None:
    """The same for an exception that `map` raises."""
    references: list[weakref.ref[Witness]] = []

    def task(number: int) -> None:
        witness = Witness()
        references.append(weakref.ref(witness))
        assert number != 1

    with contextlib.suppress(AssertionError):
        list(ImmediateExecutor().map(task, range(3)))
    assert [reference() for reference in references] == [None, None, None]
