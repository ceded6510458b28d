"""`ExecutorBackend` at odd moments: transactions, full queues, shutdowns, forks, and its options."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.db import transaction
from django.test import TestCase, override_settings

from django_executors import ImmediateExecutor, QueueFull, ThreadPoolExecutor, executors
from django_executors.backends.results import of_this_process
from django_executors.testing import drain, run_inline

from . import django_tasks_of_ours as tasks
from .django_tasks_of_ours import (
    TaskResultDoesNotExist,
    TaskResultStatus,
    default_task_backend,
    heard,
    with_options,
)
from .forking import fork
from .gates import Gate
from .observers import PostgresObserver
from .test_submit_in_atomic import in_test_case
from .test_tasks_backend import finished
from .testapp.models import Entry

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED


class FailingPool(ThreadPoolExecutor):
    """A pool whose workers cannot begin."""

    def __init__(self) -> None:
        super().__init__(1, initializer=self.fail)

    def fail(self) -> None:
        raise LookupError


@pytest.fixture(autouse=True)
def one_worker() -> Iterator[None]:
    options = {"max_workers": 1, "max_pending": 3, "when_full": "raise"}
    with override_settings(EXECUTORS={"default": {"OPTIONS": options}}):
        yield
        executors.shutdown()


@pytest.fixture
def held(gate: Gate) -> Any:
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


@pytest.mark.usefixtures("collector_off", "conn_max_age")
def test_connections(postgres: PostgresObserver) -> None:
    """A task's connection is closed when it has ended, that of a coroutine too."""
    for task in (tasks.count, tasks.count_async):
        assert finished(task.enqueue()).return_value == 0
        drain()
        assert not postgres.left()


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


@pytest.mark.parametrize("inner", [False, True])
def test_rollback(inner: bool) -> None:
    """When it rolls back there was no task, and there is no result."""
    with heard() as signals:
        with transaction.atomic():
            with transaction.atomic():
                result = tasks.noop.enqueue()
                if inner:
                    transaction.set_rollback(True)
            if not inner:
                transaction.set_rollback(True)
        drain()
        assert is_gone(result)
        assert signals == []
    assert executors["default"].stats().submitted == 0


def test_at_once_in_a_transaction() -> None:
    """Without `enqueue_on_commit` it is enqueued at once."""
    with with_options(enqueue_on_commit=False), transaction.atomic():
        Entry.objects.create(name="new")
        assert finished(tasks.exists.enqueue("new")).return_value is False


def test_other_threads(held: Any, gate: Gate) -> None:
    """Any thread finds a result as it is: running, then finished."""
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        found, other = (others.submit(tasks.own_result, held.id).result(10) for _ in range(2))
        assert found.status == TaskResultStatus.RUNNING
        assert (found.attempts, found.finished_at) == (1, None)
        assert found.started_at is not None
        gate.open()
        assert (
            others.submit(finished, found).result(10).return_value
            == found.worker_ids[0].partition("-")[2]
        )
        assert other.status == TaskResultStatus.RUNNING  # until it is refreshed


def test_full_queue(held: Any) -> None:
    """A queue that is full refuses a task: the caller hears it, or after a commit, the result."""
    waiting = [tasks.noop.enqueue() for _ in range(3)]
    kept = of_this_process["default"]._results
    before = [*kept]
    with pytest.raises(QueueFull):
        tasks.noop.enqueue()
    assert [*kept] == before
    with transaction.atomic():
        result = tasks.noop.enqueue()
    result.refresh()
    assert result.status == FAILED
    assert result.errors[0].exception_class is QueueFull
    assert all(default_task_backend.get_result(each.id).status == READY for each in waiting)


def test_shutdown(held: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What has not run at a shutdown's deadline is logged by its name, and its result says so."""
    waiting = [tasks.noop.enqueue() for _ in range(3)]
    with heard() as signals:
        executors.shutdown(timeout=0)
    for result in waiting:
        result.refresh()
        assert result.status == FAILED
        assert (result.started_at, result.attempts) == (None, 0)
        assert result.errors[0].exception_class is concurrent.futures.CancelledError
    assert [name for name, _, _ in signals] == ["finished"] * 3
    (said,) = [each.getMessage() for each in caplog.records if "shutdown left" in each.getMessage()]
    assert "running=1 (tests.django_tasks_of_ours.wait_at_gate x1)" in said
    assert "not_run=3 (tests.django_tasks_of_ours.noop x3)" in said
    with pytest.raises(RuntimeError, match="after shutdown"):
        tasks.noop.enqueue()


def test_oldest_results_go_first() -> None:
    """So many results of finished tasks are kept."""
    with with_options(max_results=2):
        results = [finished(tasks.noop.enqueue()) for _ in range(4)]
        assert [is_gone(result) for result in results] == [True, True, False, False]
        with pytest.raises(TaskResultDoesNotExist, match="not among the last 2 that finished"):
            results[0].refresh()


def test_unfinished_results_stay(held: Any, gate: Gate) -> None:
    """A task that waits or runs keeps its result, however many have finished."""
    with override_settings(EXECUTORS={"default": {}}), with_options(max_results=1):
        tasks.gates.append(gate)
        running = tasks.wait_at_gate.enqueue()
        for _ in range(5):
            finished(tasks.noop.enqueue())
        running.refresh()
        assert not running.is_finished
        gate.open()
        assert finished(running).status == TaskResultStatus.SUCCESSFUL


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
    immediate = {"BACKEND": f"django_executors.{ImmediateExecutor.__name__}"}
    with override_settings(EXECUTORS={"default": immediate}):
        assert tasks.own_id.enqueue().status == TaskResultStatus.SUCCESSFUL
        assert tasks.fail.enqueue().status == FAILED


def test_in_a_test_case() -> None:
    """In a TestCase a task runs, on the test's own rows, where what waits for the commit is captured."""

    class Case(TestCase):
        databases = ("default",)

        def test_it(self) -> None:
            Entry.objects.create(name="new")
            with run_inline():
                with self.captureOnCommitCallbacks(execute=True):
                    result = tasks.exists.enqueue("new")
                result.refresh()
                assert result.return_value is True
                with with_options(enqueue_on_commit=False):
                    assert tasks.exists.enqueue("new").return_value is True

    in_test_case(Case)


def test_broken_pool() -> None:
    """Where an initializer fails, the tasks have failed."""
    initializer = "tests.test_tasks_backend_moments.FailingPool"
    with override_settings(EXECUTORS={"default": {"BACKEND": initializer}}):
        result = finished(tasks.noop.enqueue())
        assert result.status == FAILED
        assert result.errors[0].exception_class is BrokenThreadPool


def test_never_ready_after_it_ran() -> None:
    """What a task itself has noted has begun is never said to wait."""
    begun: set[str] = set()
    wrong: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = map(default_task_backend.get_result, begun.copy())
            wrong.extend(result.id for result in found if result.status == READY)

    with heard() as signals, concurrent.futures.ThreadPoolExecutor(1) as others:
        looking = others.submit(look)
        for _ in range(300):
            result = tasks.own_id.enqueue()
            finished(result)
            begun.add(result.return_value)
        ended.set()
        looking.result(10)
    assert wrong == []
    assert len(signals) >= 899
