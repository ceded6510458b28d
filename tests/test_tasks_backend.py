"""`ExecutorBackend`: what Django's own tests assert of its ImmediateBackend holds here, with waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from django_executors import executors
from django_executors.backends import ExecutorBackend

from . import django_tasks_of_ours as tasks
from .django_tasks_of_ours import (
    LOGGER,
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    default_task_backend,
    heard,
    task_backends,
)
from .observers import PostgresObserver
from .waiting import wait_until

BACKEND = "django_executors.backends.ExecutorBackend"


@pytest.fixture(autouse=True)
def own_executors() -> Iterator[None]:
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 4}}}):
        yield
        executors.shutdown()


def finished(result: Any, within: float = 10) -> Any:
    """Return this result when its task has finished."""

    def refreshed() -> Any:
        result.refresh()
        return result

    return wait_until(refreshed, lambda found: found.is_finished, within=within)


def in_order(result: Any) -> bool:
    return bool(
        result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    )


def test_the_backend() -> None:
    """Django finds it by the setting."""
    assert isinstance(task_backends["default"], ExecutorBackend)
    assert default_task_backend.alias == "default"


@pytest.mark.parametrize("task", [tasks.noop, tasks.noop_async])
def test_enqueue(task: Any) -> None:
    """A task runs, and its result says with what, when and how often."""
    result = task.enqueue(1, two=3)
    assert result.enqueued_at is not None
    assert finished(result).status == TaskResultStatus.SUCCESSFUL
    assert in_order(result)
    assert result.return_value is None
    assert (result.task, result.args, result.kwargs) == (task, [1], {"two": 3})
    assert (result.attempts, result.errors) == (1, [])


@pytest.mark.parametrize("task", [tasks.noop, tasks.noop_async])
def test_enqueue_in_async_code(task: Any, postgres: PostgresObserver) -> None:
    """`aenqueue`, `arefresh` and `aget_result` do the same."""

    async def main() -> None:
        result = await task.aenqueue()
        async with asyncio.timeout(10):
            while not result.is_finished:
                await asyncio.to_thread(executors["default"].submit(int).result, 10)
                await result.arefresh()
        assert result.status == TaskResultStatus.SUCCESSFUL
        assert await task.aget_result(result.id) == result
        with pytest.raises(TaskResultDoesNotExist):
            await default_task_backend.aget_result("123")

    asyncio.run(main())
    assert not postgres.left()


def test_asking_in_async_code() -> None:
    """Asking for a result needs no other thread."""
    result = finished(tasks.meaning_of_life.enqueue())

    async def main() -> None:
        before = threading.enumerate()
        assert (await default_task_backend.aget_result(result.id)).return_value == 42
        assert threading.enumerate() == before

    asyncio.run(main())


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (tasks.fail, ValueError, "This Task failed due to ValueError"),
        (tasks.exit_thread, SystemExit, "This Task failed due to SystemExit"),
        (tasks.interrupt, KeyboardInterrupt, "This Task failed due to KeyboardInterrupt"),
    ],
)
def test_error(
    task: Any, error: type[BaseException], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that raises has failed; its error is in the result, with the traceback, and in the log."""
    result = finished(task.enqueue())
    assert result.status == TaskResultStatus.FAILED
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    assert in_order(result)
    (found,) = result.errors
    assert found.exception_class is error
    assert found.traceback.endswith(f"{error.__name__}: {message}\n")
    assert "django_tasks_of_ours.py" in found.traceback
    executors.shutdown()
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.name == LOGGER
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_error_in_an_error() -> None:
    """An error whose argument is no text is told too."""
    result = finished(tasks.fail_with_an_error_in_the_error.enqueue())
    assert result.errors[0].exception_class is ValueError
    assert 'ValueError(ValueError("This task failed"))' in result.errors[0].traceback


def test_what_json_has_not() -> None:
    """A result that JSON does not have is an error of the task's; an argument, one of `enqueue`."""
    result = finished(tasks.return_what_json_has_not.enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is TypeError
    assert "Unsupported type" in result.errors[0].traceback
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.noop.enqueue(object())
    assert executors["default"].stats().submitted == 1


def test_return_value() -> None:
    """The value that was returned is the result's, and asking too early says so."""
    result = tasks.meaning_of_life.enqueue()
    assert finished(result).return_value == 42
    assert tasks.meaning_of_life.get_result(result.id).return_value == 42
    with pytest.raises(TaskResultMismatch):
        tasks.noop.get_result(result.id)
    with pytest.raises(TaskResultDoesNotExist, match="'123' is none of this process's"):
        default_task_backend.get_result("123")


def test_a_result_is_of_its_moment() -> None:
    """What one caller has is not changed under its feet; `refresh` changes it."""
    with heard() as signals:
        result = tasks.noop.enqueue()
        other = default_task_backend.get_result(result.id)
        assert finished(result).is_finished
        assert other is not result
        other.refresh()
        assert other == result
        executors.shutdown()
    assert [(name, status) for name, _, status in signals] == [
        ("enqueued", TaskResultStatus.READY),
        ("started", TaskResultStatus.RUNNING),
        ("finished", TaskResultStatus.SUCCESSFUL),
    ]
    assert [found.status for _, found, _ in signals] == [status for _, _, status in signals]
    assert {found.id for _, found, _ in signals} == {result.id}


def test_receivers_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    """They change nothing of the task, and Django logs their errors."""

    def receive(**kwargs: Any) -> None:
        raise LookupError("of a receiver")

    signals = [tasks.task_enqueued, tasks.task_started, tasks.task_finished]
    for signal in signals:
        signal.connect(receive)
    try:
        assert finished(tasks.meaning_of_life.enqueue()).return_value == 42
        executors.shutdown()
    finally:
        for signal in signals:
            signal.disconnect(receive)
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["of a receiver"] * 3


def test_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Django's records are there, of a task that succeeds and of one that fails."""
    caplog.set_level(logging.DEBUG, LOGGER)
    for task, state in ((tasks.noop, "SUCCESSFUL"), (tasks.fail, "FAILED")):
        caplog.clear()
        result = finished(task.enqueue())
        records = wait_until(lambda: [*caplog.records], lambda found: len(found) >= 3)
        said = [record.getMessage() for record in records if record.name == LOGGER]
        assert all(result.id in each for each in said)
        assert "enqueued" in said[0]
        assert [each.rpartition("=")[2] for each in said[1:]] == ["RUNNING", state]


def test_context() -> None:
    """A task that takes its context finds itself there, and as everybody finds it: running."""
    result = tasks.own_id.enqueue()
    assert finished(result).return_value == result.id
    result = finished(tasks.seen_by_itself.enqueue(1))
    assert result.errors == []
    status, attempts, worker_ids, finished_at = result.return_value
    assert (status, attempts, finished_at) == ("RUNNING", 1, None)
    assert worker_ids == result.worker_ids
    assert "default_" in worker_ids[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"run_after": timezone.now()},
            "Backend does not support run_after. What waits in memory is lost",
        ),
        ({"priority": 1}, "Backend does not support setting priority of tasks. What waits in memory"),
        ({"priority": -1}, "django-tasks-db's backend, for one, has it"),
    ],
)
def test_what_it_does_not_have(changes: dict[str, Any], said: str) -> None:
    """What a process's end would lose is refused, and the message says who has it."""
    with pytest.raises(InvalidTask, match=said):
        tasks.noop.using(**changes)


def test_queue_names() -> None:
    """A queue that the setting does not name is refused when the task is enqueued, in async code too."""
    task = tasks.noop.using(queue_name="unknown_queue")
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["queue-1"]}}):
        for enqueue in (task.enqueue, lambda: asyncio.run(task.aenqueue())):
            with pytest.raises(InvalidTask, match="Queue 'unknown_queue' is not valid for backend"):
                enqueue()
