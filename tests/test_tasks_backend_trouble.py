"""`ExecutorBackend` when receivers, callers and forks are unkind to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

from django_executors import executors
from django_executors.backends.results import of_this_process
from django_executors.testing import drain, run_inline

from . import django_tasks_of_ours as tasks
from .django_tasks_of_ours import (
    TaskResultDoesNotExist,
    TaskResultStatus,
    default_task_backend,
    task_enqueued,
    task_finished,
    task_started,
)
from .forking import exit_code, quiet_fork
from .gates import Gate
from .test_tasks_backend import finished

SIGNALS = [task_enqueued, task_started, task_finished]


@pytest.fixture(autouse=True)
def idle_after() -> Iterator[None]:
    yield
    drain()


@pytest.fixture
def receive() -> Iterator[Callable[..., None]]:
    """Connects a receiver until the test's end."""
    connected: list[tuple[Any, Any]] = []

    def connect(signal: Any, receiver: Any) -> None:
        signal.connect(receiver)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, LookupError])
@pytest.mark.parametrize("signal", SIGNALS, ids=["enqueued", "started", "finished"])
def test_a_receiver_raises(
    signal: Any, error: type[BaseException], inline: bool, receive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It changes nothing, and is logged."""

    def receiver(**kwargs: Any) -> None:
        raise error("of the receiver")

    receive(signal, receiver)
    if inline:
        with run_inline():
            result = tasks.meaning_of_life.enqueue()
    else:
        result = finished(tasks.meaning_of_life.enqueue())
    assert result.return_value == 42
    said = [record for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
    assert [type(record.exc_info[1]) for record in said if record.exc_info] == [error]


def test_ctrl_c_in_a_receiver(receive: Any) -> None:
    """With `run_inline` it reaches the caller of `enqueue`, and there is no result."""

    def receiver(**kwargs: Any) -> None:
        raise KeyboardInterrupt

    def remember(task_result: Any, **kwargs: Any) -> None:
        ids.append(task_result.id)

    receive(task_started, receiver)
    receive(task_enqueued, remember)
    ids: list[str] = []
    with run_inline(), pytest.raises(KeyboardInterrupt):
        tasks.noop.enqueue()
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(ids[0])


def test_a_receiver_raises_at_shutdown(receive: Any, gate: Gate) -> None:
    """All that wait are failed."""

    def receiver(**kwargs: Any) -> None:
        raise SystemExit

    receive(task_finished, receiver)
    tasks.gates.append(gate)
    busy = [tasks.wait_at_gate.enqueue() for _ in range(executors["default"]._most_workers)]
    gate.wait_for(len(busy))
    waiting = [tasks.noop.enqueue() for _ in range(3)]
    executors["default"].shutdown(timeout=0)
    for result in waiting:
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
    gate.open()
    tasks.gates.clear()
    del executors._made["default"]


def test_nobody_changes_a_result() -> None:
    """Not those that hold one, nor the task, which has its arguments to itself."""
    result = finished(tasks.append.enqueue([1]))
    assert (result.args, result.return_value) == ([[1]], [1, "of the task"])
    result.return_value.append("of the caller")
    result.args[0].append("of the caller")
    result.worker_ids.append("of the caller")
    again = default_task_backend.get_result(result.id)
    assert (again.args, again.return_value, again.attempts) == ([[1]], [1, "of the task"], 1)


def test_a_receiver_changes_nothing(receive: Any) -> None:
    def receiver(task_result: Any, **kwargs: Any) -> None:
        task_result.args.append("of the receiver")
        task_result.errors.append("of the receiver")

    for signal in SIGNALS:
        receive(signal, receiver)
    result = finished(tasks.noop.enqueue("an argument"))
    assert (result.args, result.errors) == (["an argument"], [])


def test_gone_at_once() -> None:
    """After a rollback there is no result, from the moment that the block has ended."""
    for _ in range(50):
        with transaction.atomic():
            result = tasks.noop.enqueue()
            transaction.set_rollback(True)
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()
    drain()
    results = of_this_process["default"]
    assert not results._waiting


def test_attributes_of_the_function() -> None:
    """They do not take the place of the job's own."""
    assert finished(tasks.attributed.enqueue()).return_value == "of the task"


def test_fork_while_a_result_is_changed() -> None:
    """The child of a task, which returns from it, does not wait for a thread that it does not have."""

    def child_in_task() -> int:
        with of_this_process["default"]._lock:
            pid = quiet_fork()
        if pid == 0:
            return 0
        return exit_code(pid)

    finished(tasks.noop.enqueue())
    tasks.calls.append(child_in_task)
    try:
        assert finished(tasks.call.enqueue()).return_value == 0
    finally:
        tasks.calls.clear()


def test_in_a_coroutine() -> None:
    async def main() -> Any:
        with pytest.raises(SynchronousOnlyOperation, match="await aenqueue"):
            tasks.noop.enqueue()
        return await tasks.noop.aenqueue()

    assert finished(asyncio.run(main())).status == TaskResultStatus.SUCCESSFUL
