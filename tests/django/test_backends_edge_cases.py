"""`ExecutorBackend` at odd moments: transactions, full queues, shutdowns, forks, and its options."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.test import TestCase, override_settings

from django_executors import ImmediateExecutor, QueueFull, ThreadPoolExecutor, executors
from django_executors.backends.results import of_this_process
from django_executors.testing import drain, run_inline
from tests.django.test_backends import finished
from tests.executors.test_on_commit import in_test_case
from tests.projects import django_tasks_of_ours as tasks
from tests.projects.django_tasks_of_ours import (
    TaskResultDoesNotExist,
    TaskResultStatus,
    default_task_backend,
    heard,
    task_enqueued,
    task_finished,
    task_started,
    with_options,
)
from tests.projects.testapp.models import Entry
from tests.support.forks import exit_code, fork, quiet_fork
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver

READY, FAILED = TaskResultStatus.READY, TaskResultStatus.FAILED


class FailingPool(ThreadPoolExecutor):
    """A pool whose workers cannot begin."""

    def __init__(self) -> None:
        super().__init__(1, initializer=self.fail)

    def fail(self) -> None:
        raise LookupError


@pytest.fixture
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


@pytest.mark.usefixtures("one_worker", "conn_max_age")
def test_connections(postgres: PostgresObserver) -> None:
    """A task's connection is closed when it has ended, that of a coroutine too."""
    for task in (tasks.count, tasks.count_async):
        assert finished(task.enqueue()).return_value == 0
        drain()
        assert not postgres.left()


@pytest.mark.usefixtures("one_worker")
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
@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
def test_at_once_in_a_transaction() -> None:
    """Without `enqueue_on_commit` it is enqueued at once."""
    with with_options(enqueue_on_commit=False), transaction.atomic():
        Entry.objects.create(name="new")
        assert finished(tasks.exists.enqueue("new")).return_value is False


@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
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
    assert "running=1 (tests.projects.django_tasks_of_ours.wait_at_gate x1)" in said
    assert "not_run=3 (tests.projects.django_tasks_of_ours.noop x3)" in said
    with pytest.raises(RuntimeError, match="after shutdown"):
        tasks.noop.enqueue()


@pytest.mark.usefixtures("one_worker")
def test_oldest_results_go_first() -> None:
    """So many results of finished tasks are kept."""
    with with_options(max_results=2):
        results = [finished(tasks.noop.enqueue()) for _ in range(4)]
        assert [is_gone(result) for result in results] == [True, True, False, False]
        with pytest.raises(TaskResultDoesNotExist, match="not among the last 2 that finished"):
            results[0].refresh()


@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
def test_fork(held: Any) -> None:
    """A forked child has results of its own, and none of its parent's."""

    def child() -> None:
        assert is_gone(held)
        assert finished(tasks.meaning_of_life.enqueue()).return_value == 42

    assert fork(child) == (0, "")


@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
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


@pytest.mark.usefixtures("one_worker")
def test_broken_pool() -> None:
    """Where an initializer fails, the tasks have failed."""
    initializer = "tests.django.test_backends_edge_cases.FailingPool"
    with override_settings(EXECUTORS={"default": {"BACKEND": initializer}}):
        result = finished(tasks.noop.enqueue())
        assert result.status == FAILED
        assert result.errors[0].exception_class is BrokenThreadPool


@pytest.mark.usefixtures("one_worker")
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


# `ExecutorBackend` when receivers, callers and forks are unkind to it.


SIGNALS = [task_enqueued, task_started, task_finished]


@pytest.fixture
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
@pytest.mark.usefixtures("idle_after")
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


@pytest.mark.usefixtures("idle_after")
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


@pytest.mark.usefixtures("idle_after")
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


@pytest.mark.usefixtures("idle_after")
def test_nobody_changes_a_result() -> None:
    """Not those that hold one, nor the task, which has its arguments to itself."""
    result = finished(tasks.append.enqueue([1]))
    assert (result.args, result.return_value) == ([[1]], [1, "of the task"])
    result.return_value.append("of the caller")
    result.args[0].append("of the caller")
    result.worker_ids.append("of the caller")
    again = default_task_backend.get_result(result.id)
    assert (again.args, again.return_value, again.attempts) == ([[1]], [1, "of the task"], 1)


@pytest.mark.usefixtures("idle_after")
def test_a_receiver_changes_nothing(receive: Any) -> None:
    def receiver(task_result: Any, **kwargs: Any) -> None:
        task_result.args.append("of the receiver")
        task_result.errors.append("of the receiver")

    for signal in SIGNALS:
        receive(signal, receiver)
    result = finished(tasks.noop.enqueue("an argument"))
    assert (result.args, result.errors) == (["an argument"], [])


@pytest.mark.usefixtures("idle_after")
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


@pytest.mark.usefixtures("idle_after")
def test_attributes_of_the_function() -> None:
    """They do not take the place of the job's own."""
    assert finished(tasks.attributed.enqueue()).return_value == "of the task"


@pytest.mark.usefixtures("idle_after")
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


@pytest.mark.usefixtures("idle_after")
def test_in_a_coroutine() -> None:
    async def main() -> Any:
        with pytest.raises(SynchronousOnlyOperation, match="await aenqueue"):
            tasks.noop.enqueue()
        return await tasks.noop.aenqueue()

    assert finished(asyncio.run(main())).status == TaskResultStatus.SUCCESSFUL
