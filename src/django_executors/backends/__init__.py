"""Django Tasks on this library's executors, for `settings.TASKS`.

Django 6.0 and newer have Tasks; on Django 5.2 the package `django-tasks` has the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.utils.crypto import get_random_string

from django_executors import registry
from django_executors.on_commit import submit_on_commit

from .compat import BaseTaskBackend, InvalidTask, base, exceptions
from .jobs import Job
from .results import Results, copied, of_this_process

if TYPE_CHECKING:
    AnyTask = base.Task[..., Any]
    Result = base.TaskResult[..., Any]

P = ParamSpec("P")
R = TypeVar("R")


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
        options |= self.options
        self._executor = options["executor"]
        self._on_commit = options["enqueue_on_commit"]
        most = options["max_results"]
        if not isinstance(self._on_commit, bool):
            raise ImproperlyConfigured(
                f"{where}['enqueue_on_commit'] must be True or False, not {self._on_commit!r}"
            )
        if not isinstance(self._executor, str):
            raise ImproperlyConfigured(
                f"{where}['executor'] must be an alias of EXECUTORS, not {self._executor!r}"
            )
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ImproperlyConfigured(
                f"{where}['max_results'] must be a whole number of 1 or more, not {most!r}"
            )
        self._most = most

    @property
    def _results(self) -> Results:
        # Django makes a backend for each thread, and a forked child has those of its parent.
        return of_this_process.setdefault(self.alias, Results(self._most))

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return an error if there is no such executor."""
        try:
            registry.make(self._executor)
        except ImproperlyConfigured as error:
            return [
                Error(
                    f"TASKS[{self.alias!r}]['OPTIONS']['executor']: {error}", id="django_executors.E003"
                )
            ]
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
        job = Job(type(self), results, result)
        submit: Callable[..., Future[Any]] = functools.partial(self._submit, job)
        results.add(result)
        try:
            future: Future[Any] = submit_on_commit(submit, task.func) if self._on_commit else submit()
        except BaseException as error:
            results.discard(result.id)
            if isinstance(error, SynchronousOnlyOperation):
                raise SynchronousOnlyOperation(
                    "enqueue() cannot be called in a coroutine: await aenqueue()"
                ) from error
            raise
        results.wait(result.id, future)
        future.add_done_callback(job.note_end)
        found: Any = copied(job.result)
        return found  # type: ignore[no-any-return]

    def get_result(self, result_id: str) -> Result:
        """Return a task's result as it is now.

        Raises:
            TaskResultDoesNotExist: no task of this process has that id, or it finished so long ago that
                its result is not kept any more, or its transaction was rolled back.
        """
        result = self._results.get(result_id)
        if result is None:
            raise exceptions.TaskResultDoesNotExist(
                f"{result_id!r} is none of this process's, or not among the last {self._most} that "
                "finished"
            )
        return result

    async def aget_result(self, result_id: str) -> Result:
        return self.get_result(result_id)

    def _submit(self, job: Job, *_: object) -> Future[None]:
        job.note_enqueued()
        return registry.executors[self._executor].submit(job)
