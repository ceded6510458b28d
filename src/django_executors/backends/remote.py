"""A task that runs in another process, on a `ProcessPoolExecutor` or a cluster."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from datetime import datetime
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.module_loading import import_string

from .compat import base, normalize_json
from .results import copied

if TYPE_CHECKING:
    Result = base.TaskResult[..., Any]

#: What comes back: when and where it began, when it ended, and what changes in the result.
Ran = tuple[datetime, str, datetime, dict[str, Any]]


def reduced(result: Result) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return what a task is pickled as: its function by the name of the module's attribute."""
    task = result.task
    options = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    del options["func"]
    fields = {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.init
    }
    del fields["task"]
    return RemoteJob, (task.module_path, options, fields)


class RemoteJob:
    """The task in the other process. It has the name of the task's function, in logs."""

    def __init__(self, path: str, options: dict[str, Any], fields: dict[str, Any]) -> None:
        self.__module__, _, self.__qualname__ = path.rpartition(".")
        self._path = path
        self._options = options
        self._fields = fields

    def __call__(self) -> Ran:
        began, where = timezone.now(), worker_id()
        changes: dict[str, Any]
        try:
            task = dataclasses.replace(import_string(self._path), **self._options)
            running = {
                "status": base.TaskResultStatus.RUNNING,
                "started_at": began,
                "last_attempted_at": began,
                "worker_ids": [where],
            }
            result: Any = base.TaskResult(task=task, **self._fields | running)
            changes = succeeded(call(result))
        except BaseException as error:  # noqa: BLE001 - it is the result's
            changes = failed(error)
        return began, where, timezone.now(), changes


def worker_id() -> str:
    """Return the name of the calling worker, of 64 characters or less."""
    return f"{os.getpid()}-{threading.current_thread().name}"[-64:]


def call(running: Result) -> Any:
    """Call the task's function in the calling thread and return what JSON makes of its value."""
    result = copied(running)
    context: tuple[base.TaskContext[..., Any], ...] = (
        (base.TaskContext(task_result=result),) if result.task.takes_context else ()
    )
    return normalize_json(result.task.call(*context, *result.args, **result.kwargs))


def succeeded(value: Any) -> dict[str, Any]:
    return {"status": base.TaskResultStatus.SUCCESSFUL, "_return_value": value}


def failed(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    found = base.TaskError(
        exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
        traceback="".join(format_exception(error)),
    )
    return {"status": base.TaskResultStatus.FAILED, "errors": [found]}
