"""One task, from `enqueue` to its end."""

from __future__ import annotations

import functools
import logging
from concurrent.futures import CancelledError, Future
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal
from django.utils import timezone

from . import remote
from .compat import BaseTaskBackend, base, signals
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

    def __reduce__(self) -> Any:
        # Another process has neither the results nor who listens to the signals.
        return remote.reduced(self.result)

    def __call__(self) -> None:
        try:
            self._begin(timezone.now(), remote.worker_id())
            changes = remote.succeeded(remote.call(self.result))
        except BaseException as error:
            self._finish(**remote.failed(error))
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self._finish(**changes)

    def note_end(self, future: Future[Any]) -> None:
        """The future is done: say what became of a task that did not run, or ran in another process."""
        if self.result.is_finished or self.result.status == base.TaskResultStatus.RUNNING:
            return
        if future.cancelled():
            if self.result.enqueued_at is None:  # rolled back
                self._results.discard(self.result.id)
            else:
                error = CancelledError("the executor was shut down before the task began")
                self._finish(**remote.failed(error))
        elif (failed := future.exception()) is not None:
            self._finish(**remote.failed(failed))
        elif (ran := future.result()) is not None:
            began, where, ended, changes = ran
            self._begin(began, where)
            self._finish(ended, **changes)

    def _begin(self, now: datetime, where: str) -> None:
        self._change(
            status=base.TaskResultStatus.RUNNING,
            started_at=now,
            last_attempted_at=now,
            worker_ids=[where],
        )
        self._send(signals.task_started)

    def _finish(self, now: datetime | None = None, **changes: Any) -> None:
        self._change(finished_at=now or timezone.now(), **changes)
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
