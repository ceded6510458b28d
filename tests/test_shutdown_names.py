"""What a shutdown with a deadline calls the tasks that it leaves."""

from __future__ import annotations

import concurrent.futures.thread
import functools
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor
from django_executors.execution.work import Worker
from django_executors.lifecycle.holder import current_holder

from .draining import occupy, query
from .gates import Gate
from .shutting import index, left

Standard = concurrent.futures.ThreadPoolExecutor


def names(caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Return what the only record says of what ran and of what did not."""
    (message,) = left(caplog)
    running, not_run = re.findall(r"running=(.*) not_run=(.*)", message)[0]
    return running, not_run


def test_most_frequent_first(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Ten names are listed, the most frequent ones, and the rest is a number."""

    def named(name: str) -> Callable[[], None]:
        def task() -> None: ...

        task.__module__, task.__qualname__ = "shop", name
        return task

    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 0)
    for number in range(13):
        for _ in range(number + 1):
            pool.submit(named(f"task_{number}"))
    pool.shutdown(timeout=0)
    listed = ", ".join(f"shop.task_{number} x{number + 1}" for number in range(12, 2, -1))
    assert names(caplog) == ("1 (tests.gates.Gate x1)", f"91 ({listed}, and 3 more)")


def test_odd_functions(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """Partials, methods, builtins and arguments that look like ours have the names of their tasks."""
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 0)
    pool.submit(functools.partial(index, 1))
    pool.submit(index, pool, None, query)
    pool.submit(threading.Event().wait, 0)
    pool.submit(int, "5", base=8)
    pool.shutdown(timeout=0)
    assert names(caplog)[1] == "4 (tests.shutting.index x2, threading.Event.wait x1, builtins.int x1)"


@pytest.mark.parametrize("keeps_arguments", [True, False])
def test_wrapped_by_a_patched_submit(
    keeps_arguments: bool,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What tracing wraps each task in is not named, whatever it does with the task's arguments."""
    original = Standard.submit

    def submit(self: Any, fn: Any, /, *args: Any) -> Any:
        if keeps_arguments:
            return original(self, lambda *args: fn(*args), *args)
        return original(self, lambda: fn(*args))

    monkeypatch.setattr(Standard, "submit", submit)
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 2)
    pool.shutdown(timeout=0)
    assert "query x2" in names(caplog)[1]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it is so in every test")
def test_work_items_as_python_3_14_has_them(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a work item keeps its parts in one attribute, the names are the same."""

    class WorkItem:
        def __init__(self, future: Any, fn: Any, args: Any, kwargs: Any) -> None:
            self.future, self.task = future, (fn, args, kwargs)

        def run(self) -> None:
            if self.future.set_running_or_notify_cancel():
                fn, args, kwargs = self.task
                self.future.set_result(fn(*args, **kwargs))

    monkeypatch.setattr(concurrent.futures.thread, "_WorkItem", WorkItem)
    pool = ThreadPoolExecutor(1)
    occupy(pool, gate, 2)
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (tests.gates.Gate x1)", "2 (tests.draining.query x2)")


def test_callback_and_initializer(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that runs is named as its task's; an initializer is called that."""
    pool = ThreadPoolExecutor(1)
    proceed = Gate()
    future = pool.submit(proceed)
    proceed.wait_for()
    future.add_done_callback(gate)
    proceed.open()
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (a callback of tests.gates.Gate x1)", "0")

    caplog.clear()
    pool = ThreadPoolExecutor(1, initializer=gate)
    pool.submit(query)
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (an initializer x1)", "1 (tests.draining.query x1)")


def test_a_task_that_has_cancelled_the_others(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A task that shuts down its own pool, as with the standard class, is still the one that runs."""
    pool = ThreadPoolExecutor(1)
    others = Gate()

    def shuts_down() -> None:
        others()
        pool.shutdown(wait=False, cancel_futures=True)
        gate()

    futures = [pool.submit(task) for task in (shuts_down, query, query)]
    others.wait_for()
    others.open()
    gate.wait_for()
    assert [future.cancelled() for future in futures] == [False, True, True]
    pool.shutdown(timeout=0)
    assert names(caplog)[0].endswith("<locals>.shuts_down x1)")
    gate.open()
    pool.shutdown(timeout=20)


def test_taken_and_not_begun(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that a worker has just taken at the deadline is named as running, and runs."""
    take = Worker.take

    def stop_here(self: Worker, item: Any) -> None:
        if current_holder().executor == "stops" and item is not None:
            gate()
        take(self, item)

    monkeypatch.setattr(Worker, "take", stop_here)
    pool = ThreadPoolExecutor(1, "stops")
    future = pool.submit(query)
    gate.wait_for()
    pool.shutdown(timeout=0)
    assert names(caplog) == ("1 (tests.draining.query x1)", "0")
    gate.open()
    assert future.result(10) == "stops_0"
    pool.shutdown(timeout=20)
