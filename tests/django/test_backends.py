"""`ExecutorBackend`: what Django's own tests assert of its ImmediateBackend holds here, with waits."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.test import override_settings
from django.utils import timezone

from django_executors import executors
from django_executors.testing import drain, run_inline
from tests.projects import django_tasks_of_ours as tasks
from tests.projects.django_tasks_of_ours import (
    LOGGER,
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    default_task_backend,
    finished,
    heard,
    receiving,
    with_options,
)
from tests.projects.testapp.models import Entry
from tests.support.kinds import collect_sockets
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python

BACKEND = "django_executors.backends.ExecutorBackend"


@pytest.fixture(autouse=True)
def own_executors() -> Iterator[None]:
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 4}}}):
        yield
        executors.shutdown()


def assert_in_order(result: Any) -> None:
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at


@pytest.mark.parametrize("task", [tasks.noop, tasks.noop_async], ids=lambda task: task.name)
def test_enqueue(task: Any) -> None:
    """A task runs, and its result says with what, when and how often."""
    result = task.enqueue(1, two=3)
    assert result.enqueued_at is not None
    assert finished(result).status == TaskResultStatus.SUCCESSFUL
    assert_in_order(result)
    assert result.return_value is None
    assert (result.task, result.args, result.kwargs) == (task, [1], {"two": 3})
    assert (result.attempts, result.errors) == (1, [])


def test_async(postgres: PostgresObserver) -> None:
    """`aenqueue`, `arefresh` and `aget_result` do the same; asking needs no other thread."""

    async def enqueue() -> Any:
        with pytest.raises(SynchronousOnlyOperation, match="await aenqueue"):
            tasks.count_async.enqueue()
        return await tasks.count_async.aenqueue()

    async def ask() -> None:
        threads = threading.enumerate()
        await result.arefresh()
        assert result.return_value == 0
        assert await default_task_backend.aget_result(result.id) == result
        with pytest.raises(TaskResultDoesNotExist):
            await default_task_backend.aget_result("123")
        assert threading.enumerate() == threads

    result = asyncio.run(enqueue())
    drain()
    asyncio.run(ask())
    assert not postgres.left()


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (tasks.fail, ValueError),
        (tasks.exit_thread, SystemExit),
        (tasks.interrupt, KeyboardInterrupt),
    ],
    ids=["ValueError", "SystemExit", "KeyboardInterrupt"],
)
def test_error(task: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """A task that raises has failed; its error is in the result, with the traceback, and in the log."""
    result = finished(task.enqueue())
    assert result.status == TaskResultStatus.FAILED
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    assert_in_order(result)
    (found,) = result.errors
    assert found.exception_class is error
    assert found.traceback.endswith(f"{error.__name__}: This Task failed due to {error.__name__}\n")
    assert "django_tasks_of_ours.py" in found.traceback
    drain()
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.name == LOGGER
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_what_json_has_not() -> None:
    """A result that JSON does not have is an error of the task's; an argument, one of `enqueue`."""
    result = finished(tasks.return_what_json_has_not.enqueue())
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is TypeError
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.noop.enqueue(object())
    assert executors["default"].stats().submitted == 1


def test_return_value() -> None:
    """The value that was returned is the result's; only its own task finds the result."""
    result = tasks.meaning_of_life.enqueue()
    assert finished(result).return_value == 42
    assert tasks.meaning_of_life.get_result(result.id).return_value == 42
    with pytest.raises(TaskResultMismatch):
        tasks.noop.get_result(result.id)
    with pytest.raises(TaskResultDoesNotExist, match="'123' is none of this process's"):
        default_task_backend.get_result("123")


def test_a_result_is_of_its_moment(caplog: pytest.LogCaptureFixture) -> None:
    """What one caller, or receiver, has is not changed under its feet; Django's records are there."""
    caplog.set_level(logging.DEBUG, LOGGER)
    with heard() as signals:
        result = tasks.noop.enqueue()
        other = default_task_backend.get_result(result.id)
        finished(result)
        assert other is not result
        other.refresh()
        assert other == result
        drain()
    assert [(name, found.id, str(found.status)) for name, found, _ in signals] == [
        ("enqueued", result.id, "READY"),
        ("started", result.id, "RUNNING"),
        ("finished", result.id, "SUCCESSFUL"),
    ]
    said = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert all(result.id in each for each in said)
    assert "enqueued" in said[0]
    assert [each.rpartition("=")[2] for each in said[1:]] == ["RUNNING", "SUCCESSFUL"]


@pytest.mark.parametrize("error", [SystemExit, LookupError])
def test_receivers_that_raise(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """They change nothing of the task, in a worker or in the caller's thread, and are logged."""

    def receive(**kwargs: Any) -> None:
        raise error("of a receiver")

    with receiving(receive):
        assert finished(tasks.meaning_of_life.enqueue()).return_value == 42
        with run_inline():
            assert tasks.meaning_of_life.enqueue().return_value == 42
        drain()
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["of a receiver"] * 6


def test_context() -> None:
    """A task that takes its context finds itself there, and as everybody finds it: running."""
    result = finished(tasks.own_id.enqueue())
    assert result.return_value == result.id
    result = finished(tasks.seen_by_itself.enqueue(1))
    assert result.errors == []
    status, attempts, worker_ids, finished_at = result.return_value
    assert (status, attempts, finished_at) == ("RUNNING", 1, None)
    assert worker_ids == result.worker_ids
    assert "default_" in worker_ids[0]


def test_what_it_does_not_have() -> None:
    """What a process's end would lose is refused, with who has it; so is an unknown queue."""
    with pytest.raises(InvalidTask, match=r"not support run_after\. What waits in memory is lost"):
        tasks.noop.using(run_after=timezone.now())
    with pytest.raises(InvalidTask, match=r"not support setting priority.* django-tasks-db's backend"):
        tasks.noop.using(priority=1)
    task = tasks.noop.using(queue_name="unknown_queue")
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["queue-1"]}}):
        for enqueue in (task.enqueue, lambda: asyncio.run(task.aenqueue())):
            with pytest.raises(InvalidTask, match="Queue 'unknown_queue' is not valid for backend"):
                enqueue()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"executors": "mails"},
            " has the unknown key 'executors': it takes 'executor', 'enqueue_on_commit', 'max_results'",
        ),
        ({"executor": 5}, "['executor'] must be an alias of EXECUTORS, not 5"),
        ({"enqueue_on_commit": "yes"}, "['enqueue_on_commit'] must be True or False, not 'yes'"),
        ({"max_results": 0}, "['max_results'] must be a whole number of 1 or more, not 0"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    """They are refused by name, with what may be there."""
    with with_options(**options), pytest.raises(ImproperlyConfigured) as raised:
        tasks.noop.enqueue()
    assert str(raised.value) == f"TASKS['default']['OPTIONS']{said}"


def test_no_such_executor() -> None:
    """A system check says it, and so does `enqueue`."""
    with with_options(executor="nowhere"):
        (error,) = default_task_backend.check()
        assert error.id == "django_executors.E003"
        assert error.msg.startswith("TASKS['default']['OPTIONS']['executor']: EXECUTORS has no alias")
        with pytest.raises(
            ImproperlyConfigured, match="EXECUTORS has no alias 'nowhere': it has 'default'"
        ):
            tasks.noop.enqueue()
    assert default_task_backend.check() == []


@pytest.mark.slow
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


REMOTE: dict[str, dict[str, Any]] = {
    "process": {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": {"max_workers": 1}},
    "dask": {
        "BACKEND": "django_executors.dask.DaskExecutor",
        "OPTIONS": {"n_workers": 1, "threads_per_worker": 1},
    },
}


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest, own_executors: None) -> Iterator[None]:
    with override_settings(EXECUTORS={"default": REMOTE[request.param]}):
        yield
        executors.shutdown()
    collect_sockets()


@pytest.mark.usefixtures("remote")
def test_in_other_processes() -> None:
    """All of that holds where an executor's tasks run in other processes."""
    with heard() as signals:
        result = finished(tasks.create_and_double.enqueue(17))
        drain()
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 34)
    assert_in_order(result)
    assert not result.worker_ids[0].startswith(f"{os.getpid()}-")
    assert Entry.objects.filter(name="17").exists()
    assert [(name, str(status)) for name, _, status in signals] == [
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
    ]
    for task, error in (
        (tasks.fail, "builtins.ValueError"),
        (tasks.exit_thread, "builtins.SystemExit"),
        (tasks.interrupt, "builtins.KeyboardInterrupt"),
        (tasks.return_what_json_has_not, "builtins.TypeError"),
    ):
        result = finished(task.enqueue())
        assert result.status == TaskResultStatus.FAILED
        assert [each.exception_class_path for each in result.errors] == [error]
        assert_in_order(result)
    result = finished(tasks.own_id.enqueue())
    assert result.return_value == result.id
    assert finished(tasks.count_async.enqueue()).return_value == 1
