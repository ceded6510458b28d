"""`ExecutorBackend` at odd moments: transactions, full queues, shutdowns, forks, and its options."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings

from django_executors import QueueFull, executors
from django_executors.testing import drain, run_inline
from tests.projects import django_tasks_of_ours as tasks
from tests.projects.django_tasks_of_ours import (
    TaskResultDoesNotExist,
    TaskResultStatus,
    default_task_backend,
    finished,
    heard,
    receiving,
    task_enqueued,
    task_finished,
    task_started,
    with_options,
)
from tests.projects.testapp.models import Entry
from tests.support import process_tasks
from tests.support.forks import fork
from tests.support.gates import Gate

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED


@pytest.fixture(autouse=True)
def one_worker() -> Iterator[None]:
    options = {"max_workers": 1, "max_pending": 3, "when_full": "raise"}
    with override_settings(EXECUTORS={"default": {"OPTIONS": options}}):
        yield
        executors.shutdown()


@pytest.fixture
def held(gate: Gate) -> Iterator[Any]:
    """The result of a task that keeps the worker busy until the gate is opened."""
    tasks.gates.append(gate)
    result = tasks.wait_at_gate.enqueue()
    gate.wait_for()
    yield result
    gate.open()
    tasks.gates.clear()


def is_gone(result: Any) -> bool:
    try:
        result.refresh()
    except TaskResultDoesNotExist:
        return True
    return False


def test_commit() -> None:
    """In a transaction a task is enqueued when it commits, and sees what was committed."""
    with heard() as signals:
        with transaction.atomic():
            Entry.objects.create(name="new")
            result = tasks.exists.enqueue("new")
            assert (result.status, result.enqueued_at) == (READY, None)
            result.refresh()
            assert signals == []
        assert finished(result).return_value is True
        assert result.enqueued_at is not None


@pytest.mark.parametrize("inner", [False, True], ids=["the transaction", "a savepoint"])
def test_rollback(inner: bool) -> None:
    """When it rolls back there was no task, and from that moment there is no result."""
    with heard() as signals:
        with transaction.atomic():
            with transaction.atomic():
                result = tasks.noop.enqueue()
                transaction.set_rollback(inner)
            assert is_gone(result) is inner
            transaction.set_rollback(True)
        assert is_gone(result)
        drain()
        assert signals == []
    assert executors["default"].stats().submitted == 0


def test_at_once_in_a_transaction() -> None:
    """Without `enqueue_on_commit` it is enqueued at once."""
    with with_options(enqueue_on_commit=False), transaction.atomic():
        Entry.objects.create(name="new")
        assert finished(tasks.exists.enqueue("new")).return_value is False


@pytest.mark.usefixtures("held")
def test_full_queue() -> None:
    """A queue that is full refuses a task: the caller hears it, or after a commit, the result."""
    waiting = [tasks.noop.enqueue() for _ in range(3)]
    with pytest.raises(QueueFull):
        tasks.noop.enqueue()
    with transaction.atomic():
        result = tasks.noop.enqueue()
    result.refresh()
    assert result.status == FAILED
    assert result.errors[0].exception_class is QueueFull
    assert all(default_task_backend.get_result(each.id).status == READY for each in waiting)


@pytest.mark.usefixtures("held")
def test_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    """What has not run at a shutdown's deadline is logged by its name, and its result says so."""

    def receive(**kwargs: Any) -> None:
        raise SystemExit

    waiting = [tasks.noop.enqueue() for _ in range(3)]
    with heard() as signals, receiving(receive):
        executors.shutdown(timeout=0)
    for result in waiting:
        result.refresh()
        assert result.status == FAILED
        assert (result.started_at, result.attempts) == (None, 0)
        assert result.errors[0].exception_class is concurrent.futures.CancelledError
    assert [name for name, _, _ in signals] == ["finished"] * 3
    (said,) = [each.getMessage() for each in caplog.records if "shutdown left" in each.getMessage()]
    assert "running=1 (tests.projects.django_tasks_of_ours.wait_at_gate x1)" in said
    assert "not_run=3 (tests.projects.django_tasks_of_ours.noop x3)" in said
    with pytest.raises(RuntimeError, match="after shutdown"):
        tasks.noop.enqueue()


def test_oldest_results_go_first(gate: Gate) -> None:
    """So many results of finished tasks are kept; a task that runs keeps its own, however many end."""
    tasks.gates.append(gate)
    with override_settings(EXECUTORS={"default": {}}), with_options(max_results=2):
        running = tasks.wait_at_gate.enqueue()
        results = [finished(tasks.noop.enqueue()) for _ in range(4)]
        assert [is_gone(result) for result in results] == [True, True, False, False]
        with pytest.raises(TaskResultDoesNotExist, match="not among the last 2 that finished"):
            results[0].refresh()
        running.refresh()
        assert not running.is_finished
        gate.open()
        assert finished(running).status == TaskResultStatus.SUCCESSFUL
    tasks.gates.clear()


def test_fork(held: Any) -> None:
    """A forked child has results of its own, and none of its parent's."""

    def child() -> None:
        assert is_gone(held)
        assert finished(tasks.meaning_of_life.enqueue()).return_value == 42

    assert fork(child) == (0, "")


def test_in_the_callers_thread() -> None:
    """Within `run_inline`, and with an ImmediateExecutor, `enqueue` returns when the task has run."""
    with run_inline():
        result = tasks.meaning_of_life.enqueue()
        assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 42)
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C in the caller's own thread
            tasks.interrupt.enqueue()
    immediate = {"BACKEND": "django_executors.ImmediateExecutor"}
    with override_settings(EXECUTORS={"default": immediate}):
        assert tasks.own_id.enqueue().status == TaskResultStatus.SUCCESSFUL
        assert tasks.fail.enqueue().status == FAILED


def test_broken_pool() -> None:
    """Where an initializer fails, the tasks have failed."""
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"initializer": process_tasks.fail}}}):
        result = finished(tasks.noop.enqueue())
        assert result.status == FAILED
        assert result.errors[0].exception_class is BrokenThreadPool


def test_ctrl_c_in_a_receiver() -> None:
    """With `run_inline` it reaches the caller of `enqueue`, and there is no result."""
    ids: list[str] = []

    def interrupt(**kwargs: Any) -> None:
        raise KeyboardInterrupt

    def remember(task_result: Any, **kwargs: Any) -> None:
        ids.append(task_result.id)

    with receiving(interrupt, task_started), receiving(remember, task_enqueued), run_inline():
        with pytest.raises(KeyboardInterrupt):
            tasks.noop.enqueue()
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(ids[0])


def test_nobody_changes_a_result() -> None:
    """Not those that hold one, no receiver, nor the task, which has its arguments to itself."""

    def change(task_result: Any, **kwargs: Any) -> None:
        task_result.args.append("of the receiver")
        task_result.errors.append("of the receiver")

    with receiving(change, task_enqueued, task_started, task_finished):
        result = finished(tasks.append.enqueue([1]))
        drain()
    assert (result.args, result.return_value, result.errors) == ([[1]], [1, "of the task"], [])
    result.return_value.append("of the caller")
    result.args[0].append("of the caller")
    result.worker_ids.append("of the caller")
    again = default_task_backend.get_result(result.id)
    assert (again.args, again.return_value, again.attempts) == ([[1]], [1, "of the task"], 1)


def test_attributes_of_the_function() -> None:
    """They do not take the place of the job's own."""
    assert finished(tasks.attributed.enqueue()).return_value == "of the task"
