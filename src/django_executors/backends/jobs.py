"""One task, from `enqueue` to its end."""

from __future__ import annotations

import functools
import logging
import os
import threading
from concurrent.futures import CancelledError, Future
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal
from django.utils import timezone

from .compat import BaseTaskBackend, base, normalize_json, signals
from .results import Results, copied

if TYPE_CHECKING:
    Result = base.TaskResult[..., Any]

logger = logging.getLogger(__name__)


class Job:
    """One task, as the executor runs it. It has the name of the task's function, in logs."""

    def __init__(self, sender: type[BaseTaskBackend], results: Results, result: Result) -> None:
        functools.update_wrapper(self, result.task.func, updated=())
        self._sender = sender
        self._results = results
        #: As it is now.
        self.result: Any = result

    def note_enqueued(self) -> None:
        self._change(enqueued_at=timezone.now())
        self._send(signals.task_enqueued)

    def __call__(self) -> None:
        now = timezone.now()
        try:
            self._change(
                status=base.TaskResultStatus.RUNNING,
                started_at=now,
                last_attempted_at=now,
                worker_ids=[f"{os.getpid()}-{threading.current_thread().name}"[-64:]],
            )
            self._send(signals.task_started)
            value = normalize_json(self._call())
        except BaseException as error:
            self._fail(error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._finish(status=base.TaskResultStatus.SUCCESSFUL, _return_value=value)

    def note_end(self, future: Future[Any]) -> None:
        """The future is done: say what became of a task that did not run."""
        if self.result.is_finished or self.result.status == base.TaskResultStatus.RUNNING:
            return
        if future.cancelled():
            if self.result.enqueued_at is None:  # rolled back
                self._results.discard(self.result.id)
            else:
                self._fail(CancelledError("the executor was shut down before the task began"))
        elif (error := future.exception()) is not None:
            self._fail(error)

    def _call(self) -> Any:
        result = copied(self.result)
        context: tuple[base.TaskContext[..., Any], ...] = (
            (base.TaskContext(task_result=result),) if result.task.takes_context else ()
        )
        return result.task.call(*context, *result.args, **result.kwargs)

    def _fail(self, error: BaseException) -> None:
        kind = type(error)
        found = base.TaskError(
            exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
            traceback="".join(format_exception(error)),
        )
        self._finish(status=base.TaskResultStatus.FAILED, errors=[found])

    def _finish(self, **changes: Any) -> None:
        self._change(finished_at=timezone.now(), **changes)
        self._send(signals.task_finished)

    def _send(self, signal: Signal) -> None:
        try:
            signal.send_robust(self._sender, task_result=copied(self.result))
        except KeyboardInterrupt:
            raise
        except BaseException:  # `send_robust` lets SystemExit through, for one
            logger.exception("task=%s a receiver of its signals raised", self.result.task.name)

    def _change(self, **changes: Any) -> None:
        self.result = self._results.change(self.result.id, **changes)
