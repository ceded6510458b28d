"""Functions that are Django Tasks, on Django 5.2 by the package `django-tasks`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.test import override_settings

from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from django.tasks import TaskContext, TaskResultStatus, default_task_backend, task, task_backends
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started
else:
    try:
        from django.tasks import TaskContext, TaskResultStatus, default_task_backend, task, task_backends
        from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
        from django.tasks.signals import task_enqueued, task_finished, task_started

        LOGGER = "django.tasks"
    except ImportError:
        from django_tasks import TaskResultStatus, default_task_backend, task, task_backends
        from django_tasks.base import TaskContext
        from django_tasks.exceptions import InvalidTaskError as InvalidTask
        from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
        from django_tasks.signals import task_enqueued, task_finished, task_started

        LOGGER = "django_tasks"

__all__ = [
    "LOGGER",
    "InvalidTask",
    "TaskResultDoesNotExist",
    "TaskResultMismatch",
    "TaskResultStatus",
    "default_task_backend",
    "task_backends",
    "task_enqueued",
    "task_finished",
    "task_started",
]

gates: list[Gate] = []


@task()
def noop(*args: Any, **kwargs: Any) -> None:
    return None


@task
async def noop_async(*args: Any, **kwargs: Any) -> None:
    return None


@task()
def meaning_of_life() -> int:
    return 42


@task()
async def count_async() -> int:
    return await Entry.objects.acount()


@task()
def fail() -> None:
    raise ValueError("This Task failed due to ValueError")


@task()
def exit_thread() -> None:
    raise SystemExit("This Task failed due to SystemExit")


@task()
def interrupt() -> None:
    raise KeyboardInterrupt("This Task failed due to KeyboardInterrupt")


@task()
def return_what_json_has_not() -> Any:
    return lambda: True


@task(takes_context=True)
def own_id(context: Any) -> str:
    return str(context.task_result.id)


@task(takes_context=True)
def seen_by_itself(context: Any, attempt: int) -> list[Any]:
    assert isinstance(context, TaskContext)
    assert context.attempt == attempt
    now = own_result(context.task_result.id)
    return [now.status, now.attempts, now.worker_ids, now.finished_at]


def own_result(result_id: str) -> Any:
    return default_task_backend.get_result(result_id)


@task()
def wait_at_gate() -> str:
    gates[-1]()
    return threading.current_thread().name


@task()
def append(items: list[Any]) -> list[Any]:
    items.append("of the task")
    return items


def _attributed() -> str:
    return "of the task"


vars(_attributed)["_call"] = lambda: "of an attribute"
attributed = task()(_attributed)


@task()
def count() -> int:
    return Entry.objects.count()


@task()
def exists(name: str) -> bool:
    return Entry.objects.filter(name=name).exists()


def with_options(**options: Any) -> Any:
    return override_settings(
        TASKS={"default": {"BACKEND": "django_executors.backends.ExecutorBackend", "OPTIONS": options}}
    )


created: set[int] = set()


@task()
def create_and_double(number: int) -> int:
    created.add(number)
    Entry.objects.create(name=str(number))
    return 2 * number


def finished(result: Any) -> Any:
    """Return this result when its task has finished. Receivers of the signal may not have run yet."""

    def refreshed() -> Any:
        result.refresh()
        return result

    assert wait_until(refreshed, lambda found: found.is_finished, within=60).is_finished
    return result


@contextlib.contextmanager
def receiving(receiver: Callable[..., None], *of: Any) -> Iterator[None]:
    """Connect a receiver to these signals, or to all three."""
    of = of or (task_enqueued, task_started, task_finished)
    for signal in of:
        signal.connect(receiver)
    try:
        yield
    finally:
        for signal in of:
            signal.disconnect(receiver)


@contextlib.contextmanager
def heard() -> Iterator[list[tuple[str, Any, str]]]:
    """Note which signals were sent, with their result and its status at the time."""
    found: list[tuple[str, Any, str]] = []
    names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}

    def note(signal: Any, task_result: Any, **kwargs: Any) -> None:
        found.append((names[signal], task_result, task_result.status))

    with receiving(note):
        yield found
