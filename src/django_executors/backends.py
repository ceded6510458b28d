"""Django Tasks on this library's executors, for `settings.TASKS`.

Django 6.0 and newer have Tasks; on Django 5.2 the package `django-tasks` has the same.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from datetime import datetime
from traceback import format_exception
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.signals import setting_changed
from django.dispatch import Signal
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.module_loading import import_string

from . import registry
from .exceptions import ExecutorError
from .naming import log
from .on_commit import submit_on_commit
from .task import TaskFuture

if TYPE_CHECKING:
    from django.tasks import base, exceptions, signals
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.exceptions import InvalidTask
    from django.utils.json import normalize_json

    AnyTask = base.Task[..., Any]
    Result = base.TaskResult[..., Any]
else:
    try:
        from django.tasks import base, exceptions, signals
        from django.tasks.backends.base import BaseTaskBackend
        from django.tasks.exceptions import InvalidTask
        from django.utils.json import normalize_json
    except ImportError:
        from django_tasks import base, exceptions, signals
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.exceptions import InvalidTaskError as InvalidTask
        from django_tasks.utils import normalize_json

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class ExecutorBackend(BaseTaskBackend):
    """Run Django's Tasks in this process, on an executor that `settings.EXECUTORS` names.

    A task runs in one of the executor's workers, by the rules of every task there. What is queued, and
    all results, are this process's: they end with it, and no other process sees them. All threads do.

    Its `OPTIONS`:

    - `executor`: which one of `executors`; default "default".
    - `enqueue_on_commit`: whether `enqueue` in a transaction waits for the commit, as `submit_on_commit`
      does. When it rolls back there is no task, and no result. Default True.
    - `max_results`: how many results of finished tasks are kept, 10,000 by default. The oldest go first.

    Raises:
        ImproperlyConfigured: another option, or a value that makes no sense.
    """

    supports_defer = False
    supports_async_task = True
    supports_get_result = True
    supports_priority = False

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, dict(params))
        options: dict[str, Any] = {
            "executor": "default",
            "enqueue_on_commit": True,
            "max_results": 10_000,
        }
        where = f"TASKS[{alias!r}]['OPTIONS']"
        if unknown := self.options.keys() - options:
            raise ImproperlyConfigured(
                f"{where} has the unknown key {', '.join(sorted(map(repr, unknown)))}: it takes "
                f"{', '.join(map(repr, options))}"
            )
        self._executor, self._on_commit, self._most = (options | self.options).values()
        if not isinstance(self._on_commit, bool):
            raise ImproperlyConfigured(
                f"{where}['enqueue_on_commit'] must be True or False, not {self._on_commit!r}"
            )
        if not isinstance(self._executor, str):
            raise ImproperlyConfigured(
                f"{where}['executor'] must be an alias of EXECUTORS, not {self._executor!r}"
            )
        if isinstance(self._most, bool) or not isinstance(self._most, int) or self._most < 1:
            raise ImproperlyConfigured(
                f"{where}['max_results'] must be a whole number of 1 or more, not {self._most!r}"
            )

    @property
    def _results(self) -> _Results:
        # Django makes a backend for each thread, and a forked child has those of its parent.
        return _of_this_process.setdefault(self.alias, _Results(self._most))

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return an error if there is no such executor."""
        try:
            registry.make(self._executor)
        except ImproperlyConfigured as error:
            where = f"TASKS[{self.alias!r}]['OPTIONS']['executor']"
            return [Error(f"{where}: {error}", id="django_executors.E003")]
        return []

    def validate_task(self, task: AnyTask) -> None:
        """Refuse what is not kept for long enough in memory."""
        for name, is_wanted in (
            ("run_after", task.run_after is not None),
            ("setting priority of tasks", task.priority != base.DEFAULT_TASK_PRIORITY),
        ):
            if is_wanted:
                raise InvalidTask(
                    f"Backend does not support {name}. What waits in memory is lost when the process "
                    "ends: django-tasks-db's backend, for one, has it"
                )
        super().validate_task(task)

    def enqueue(
        self, task: base.Task[P, R], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> base.TaskResult[P, R]:
        """Submit the task, at once or when the calling thread's transaction commits.

        Raises:
            InvalidTask: the task needs what this backend does not have.
            TypeError, ValueError: an argument is not made of what JSON has.
            RuntimeError, QueueFull: the executor takes no more tasks, and there is no transaction. In
                one, it is the error of the task's result.
            SynchronousOnlyOperation: called in a coroutine, where `aenqueue` is awaited.
            TransactionManagementError: autocommit is switched off, outside of `atomic`.
        """
        self.validate_task(task)
        result: base.TaskResult[P, R] = base.TaskResult(
            task=task,
            id=get_random_string(32),
            status=base.TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=args,  # type: ignore[arg-type]
            kwargs=kwargs,  # type: ignore[arg-type]
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        results = self._results
        job = _Job(type(self), results, result)
        submit: Callable[..., TaskFuture[Any]] = functools.partial(self._submit, job)
        results.add(result)
        try:
            future: TaskFuture[Any] = (
                submit_on_commit(submit, task.func) if self._on_commit else submit()
            )
        except BaseException as error:
            results.discard(result.id)
            if isinstance(error, SynchronousOnlyOperation):
                raise SynchronousOnlyOperation(
                    "enqueue() cannot be called in a coroutine: await aenqueue()"
                ) from error
            raise
        future.add_done_callback(job.ended)
        found: Any = _copied(job.result)
        return found  # type: ignore[no-any-return]

    def get_result(self, result_id: str) -> Result:
        """Return a task's result as it is now.

        Raises:
            TaskResultDoesNotExist: no task of this process has that id, or it finished so long ago that
                its result is not kept any more, or its transaction was rolled back.
        """
        if (result := self._results.get(result_id)) is None:
            raise exceptions.TaskResultDoesNotExist(
                f"{result_id!r} is none of this process's, or not among the last {self._most} that "
                "finished"
            )
        found: Result = _copied(result)
        return found

    async def aget_result(self, result_id: str) -> Result:
        return self.get_result(result_id)

    def _submit(self, job: _Job, *_: object) -> TaskFuture[Any]:
        job.enqueued()
        return registry.executors[self._executor].submit(job)


# The task, in this process or in another one.


def _run(running: Result) -> dict[str, Any]:
    """Call the task's function in the calling thread, and return what changes in its result."""
    result = _copied(running)
    context: tuple[base.TaskContext[..., Any], ...] = ()
    if result.task.takes_context:
        context = (base.TaskContext(task_result=result),)
    value = normalize_json(result.task.call(*context, *result.args, **result.kwargs))
    return {"status": base.TaskResultStatus.SUCCESSFUL, "_return_value": value}


def _failed(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    found = base.TaskError(
        exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
        traceback="".join(format_exception(error)),
    )
    return {"status": base.TaskResultStatus.FAILED, "errors": [found]}


def _begun() -> dict[str, Any]:
    now = timezone.now()
    where = f"{os.getpid()}-{threading.current_thread().name}"[-64:]
    return {
        "status": base.TaskResultStatus.RUNNING,
        "started_at": now,
        "last_attempted_at": now,
        "worker_ids": [where],
    }


class _Job:
    """One task, from `enqueue` to its end. It has the name of the task's function, in logs."""

    def __init__(self, sender: type[BaseTaskBackend], results: _Results, result: Result) -> None:
        functools.update_wrapper(self, result.task.func, updated=())
        self._sender = sender
        self._results = results
        #: As it is now.
        self.result: Any = result

    def enqueued(self) -> None:
        self._change(signals.task_enqueued, enqueued_at=timezone.now())

    def __call__(self) -> None:
        """Run it in this process."""
        try:
            self._change(signals.task_started, **_begun())
            changes = _run(self.result)
        except BaseException as error:
            self._finish(_failed(error))
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._finish(changes)

    def __reduce__(self) -> Any:
        # Another process has neither the results nor who listens to the signals; and there the task's
        # function is found by the name of the module's attribute, which is the task.
        task = self.result.task
        options = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
        del options["func"]
        fields = {
            field.name: getattr(self.result, field.name)
            for field in dataclasses.fields(self.result)
            if field.init and field.name != "task"
        }
        return _RemoteJob, (task.module_path, options, fields)

    def ended(self, future: Future[Any]) -> None:
        """The future is done: say what became of a task that did not run, or ran in another process."""
        if self.result.is_finished or self.result.status == base.TaskResultStatus.RUNNING:
            return
        if future.cancelled():
            if self.result.enqueued_at is None:  # rolled back
                self._results.discard(self.result.id)
            else:
                self._fail(CancelledError("the executor was shut down before the task began"))
        elif (error := future.exception()) is not None:
            self._fail(error)
        elif (ran := future.result()) is not None:
            begun, ended, changes = ran
            self._change(signals.task_started, **begun)
            if changes.get("errors"):
                told = changes["errors"][0].traceback
                self._fail(ExecutorError(f"it failed in another process:\n{told}"), changes, ended)
            else:
                self._finish(changes, ended)

    def _fail(
        self,
        error: BaseException,
        changes: dict[str, Any] | None = None,
        now: datetime | None = None,
    ) -> None:
        """Finish it while this error is handled: Django logs that."""
        try:
            raise error  # noqa: TRY301
        except BaseException:  # noqa: BLE001 - of the task's
            self._finish(changes or _failed(error), now)

    def _finish(self, changes: dict[str, Any], now: datetime | None = None) -> None:
        self._change(signals.task_finished, finished_at=now or timezone.now(), **changes)

    def _change(self, signal: Signal, **changes: Any) -> None:
        self.result = self._results.change(self.result.id, **changes)
        try:
            signal.send_robust(self._sender, task_result=_copied(self.result))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - `send_robust` lets SystemExit through, for one
            log(
                logger,
                logging.ERROR,
                "task=%(task)s a receiver of its signals raised",
                exc_info=True,
                task=self.result.task.name,
            )


class _RemoteJob:
    """The task in another process. It has the name of the task's function, in logs."""

    def __init__(self, path: str, options: dict[str, Any], fields: dict[str, Any]) -> None:
        self.__module__, _, self.__qualname__ = path.rpartition(".")
        self._path = path
        self._options = options
        self._fields = fields

    def __call__(self) -> tuple[dict[str, Any], datetime, dict[str, Any]]:
        begun = _begun()
        try:
            task = dataclasses.replace(import_string(self._path), **self._options)
            result: Any = base.TaskResult(task=task, **self._fields | begun)
            changes = _run(result)
        except BaseException as error:  # noqa: BLE001 - it is the result's
            changes = _failed(error)
        return begun, timezone.now(), changes


# What became of the tasks of this process.


class _Results:
    """What became of the tasks of one alias. What is in here is never changed."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Reentrant: a collection may run what uses a result.
        self._lock = threading.RLock()
        self._results: dict[str, Result] = {}  # guarded by _lock
        self._finished: deque[str] = deque()  # guarded by _lock

    def add(self, result: Result) -> None:
        with self._lock:
            self._results[result.id] = result

    def get(self, result_id: str) -> Result | None:
        return self._results.get(result_id)

    def discard(self, result_id: str) -> None:
        with self._lock:
            self._results.pop(result_id, None)

    def change(self, result_id: str, **changes: Any) -> Result:
        """Put one in the place of this result that has these changes."""
        with self._lock:
            result = copy.copy(self._results[result_id])
            for name, value in changes.items():
                object.__setattr__(result, name, value)
            self._results[result_id] = result
            if result.is_finished:
                self._finished.append(result_id)
                while len(self._finished) > self._most:
                    self._results.pop(self._finished.popleft(), None)
        return result


def _copied(result: Any) -> Any:
    """Return a result that nobody else has, nor a list or dictionary in it: they can be changed."""
    found = copy.copy(result)
    for name in ("args", "kwargs", "_return_value"):
        object.__setattr__(found, name, normalize_json(getattr(result, name)))
    for name in ("errors", "worker_ids"):
        object.__setattr__(found, name, list(getattr(result, name)))
    return found


#: By the alias in TASKS.
_of_this_process: dict[str, _Results] = {}


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "TASKS":
        _of_this_process.clear()


setting_changed.connect(_forget, dispatch_uid="django_executors.backends")
os.register_at_fork(after_in_child=_of_this_process.clear)  # they are the parent's
