"""`ExecutorBackend`: what Django's own tests assert of its ImmediateBackend holds here, with waits."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from django_executors import executors
from django_executors.backends import ExecutorBackend
from tests.projects import django_tasks_of_ours as tasks
from tests.projects.django_tasks_of_ours import (
    LOGGER,
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    default_task_backend,
    heard,
    task_backends,
    with_options,
)
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python
from tests.support.waiting import wait_until

BACKEND = "django_executors.backends.ExecutorBackend"


@pytest.fixture
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


@pytest.mark.usefixtures("own_executors")
def test_the_backend() -> None:
    """Django finds it by the setting."""
    assert isinstance(task_backends["default"], ExecutorBackend)
    assert default_task_backend.alias == "default"


@pytest.mark.parametrize("task", [tasks.noop, tasks.noop_async])
@pytest.mark.usefixtures("own_executors")
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
@pytest.mark.usefixtures("own_executors")
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


@pytest.mark.usefixtures("own_executors")
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
@pytest.mark.usefixtures("own_executors")
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


@pytest.mark.usefixtures("own_executors")
def test_error_in_an_error() -> None:
    """An error whose argument is no text is told too."""
    result = finished(tasks.fail_with_an_error_in_the_error.enqueue())
    assert result.errors[0].exception_class is ValueError
    assert 'ValueError(ValueError("This task failed"))' in result.errors[0].traceback


@pytest.mark.usefixtures("own_executors")
def test_what_json_has_not() -> None:
    """A result that JSON does not have is an error of the task's; an argument, one of `enqueue`."""
    result = finished(tasks.return_what_json_has_not.enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is TypeError
    assert "Unsupported type" in result.errors[0].traceback
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.noop.enqueue(object())
    assert executors["default"].stats().submitted == 1


@pytest.mark.usefixtures("own_executors")
def test_return_value() -> None:
    """The value that was returned is the result's, and asking too early says so."""
    result = tasks.meaning_of_life.enqueue()
    assert finished(result).return_value == 42
    assert tasks.meaning_of_life.get_result(result.id).return_value == 42
    with pytest.raises(TaskResultMismatch):
        tasks.noop.get_result(result.id)
    with pytest.raises(TaskResultDoesNotExist, match="'123' is none of this process's"):
        default_task_backend.get_result("123")


@pytest.mark.usefixtures("own_executors")
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


@pytest.mark.usefixtures("own_executors")
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


@pytest.mark.usefixtures("own_executors")
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


@pytest.mark.usefixtures("own_executors")
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
@pytest.mark.usefixtures("own_executors")
def test_what_it_does_not_have(changes: dict[str, Any], said: str) -> None:
    """What a process's end would lose is refused, and the message says who has it."""
    with pytest.raises(InvalidTask, match=said):
        tasks.noop.using(**changes)


@pytest.mark.usefixtures("own_executors")
def test_queue_names() -> None:
    """A queue that the setting does not name is refused when the task is enqueued, in async code too."""
    task = tasks.noop.using(queue_name="unknown_queue")
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["queue-1"]}}):
        for enqueue in (task.enqueue, lambda: asyncio.run(task.aenqueue())):
            with pytest.raises(InvalidTask, match="Queue 'unknown_queue' is not valid for backend"):
                enqueue()


# Wrong options of `ExecutorBackend` are named, with what would be right.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"executors": "mails"},
            "has the unknown key 'executors': it takes 'executor', 'enqueue_on_commit', 'max_results'",
        ),
        ({"enqueue_on_commit": "yes"}, "['enqueue_on_commit'] must be True or False, not 'yes'"),
        ({"max_results": 0}, "['max_results'] must be a whole number of 1 or more, not 0"),
        ({"max_results": True}, "['max_results'] must be a whole number of 1 or more, not True"),
        ({"max_results": None}, "['max_results'] must be a whole number of 1 or more, not None"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    """They are refused by name, with what may be there."""
    with with_options(**options), pytest.raises(ImproperlyConfigured) as raised:
        tasks.noop.enqueue()
    assert str(raised.value).startswith("TASKS['default']['OPTIONS']")
    assert str(raised.value).endswith(said)


def test_no_such_executor() -> None:
    """A system check says it, and so does `enqueue`."""
    with with_options(executor="nowhere"):
        (error,) = default_task_backend.check()
        assert error.id == "django_executors.E003"
        assert error.msg.startswith("TASKS['default']['OPTIONS']['executor']: EXECUTORS has no alias")
        with pytest.raises(ImproperlyConfigured, match="EXECUTORS has no alias 'nowhere'"):
            tasks.noop.enqueue()
    assert default_task_backend.check() == []


def test_checked_without_an_import() -> None:
    """The app in INSTALLED_APPS is enough, on Django 5.2 with that of `django-tasks`."""
    code = """
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.core.management.base import SystemCheckError

    apps = ["django_executors"] if django.VERSION >= (6, 0) else ["django_executors", "django_tasks"]
    backend = "django_executors.backends.ExecutorBackend"
    tasks = {"default": {"BACKEND": backend, "OPTIONS": {"executor": "mails"}}}
    settings.configure(INSTALLED_APPS=apps, TASKS=tasks)
    django.setup()
    try:
        call_command("check")
    except SystemCheckError as error:
        print("django_executors.E003" in str(error))
    """
    ended = run_python(code, settings=None, warnings="ignore")
    assert ended.stdout == "True\n", ended.stderr


# `ExecutorBackend` on executors whose tasks run in other processes.


EXECUTORS = {
    "process": {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": {"max_workers": 1}},
    "dask": {
        "BACKEND": "django_executors.dask.DaskExecutor",
        "OPTIONS": {"n_workers": 1, "threads_per_worker": 1},
    },
}


@pytest.fixture(scope="module", params=EXECUTORS)
def remote(request: pytest.FixtureRequest) -> Iterator[None]:
    with override_settings(EXECUTORS={"default": EXECUTORS[request.param]}):
        yield
        executors.shutdown()


@pytest.mark.usefixtures("remote", "dask_sockets", "idle_before_and_after")
def test_success() -> None:
    with heard() as signals:
        result = finished(tasks.create_and_double.enqueue(17), within=30)
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == 34
    assert in_order(result)
    (worker,) = result.worker_ids
    assert not worker.startswith(f"{os.getpid()}-")
    assert list(Entry.objects.values_list("name", flat=True)) == ["17"]
    assert [(name, str(status)) for name, _, status in signals] == [
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
    ]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (tasks.fail, "builtins.ValueError"),
        (tasks.exit_thread, "builtins.SystemExit"),
        (tasks.interrupt, "builtins.KeyboardInterrupt"),
        (tasks.return_what_json_has_not, "builtins.TypeError"),
    ],
)
@pytest.mark.usefixtures("remote", "dask_sockets", "idle_before_and_after")
def test_failure(task: Any, kind: str) -> None:
    result = finished(task.enqueue(), within=30)
    assert result.status == TaskResultStatus.FAILED
    assert [error.exception_class_path for error in result.errors] == [kind]
    assert in_order(result)


@pytest.mark.usefixtures("remote", "dask_sockets", "idle_before_and_after")
def test_context_and_options() -> None:
    """The task knows its result's id, as it would in a thread; a coroutine function runs too."""
    result = tasks.own_id.enqueue()
    assert finished(result, within=30).return_value == result.id
    assert finished(tasks.count_async.enqueue(), within=30).return_value == 0


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.usefixtures("remote", "dask_sockets", "idle_before_and_after")
def test_on_commit(commits: bool) -> None:
    with transaction.atomic():
        Entry.objects.create(name="new")
        result = tasks.exists.enqueue("new")
        transaction.set_rollback(not commits)
    if commits:
        assert finished(result, within=30).return_value is True
    else:
        with pytest.raises(tasks.TaskResultDoesNotExist):
            result.refresh()
