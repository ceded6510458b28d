"""The future of a task that runs in another process."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from django_executors.connections.scope import ConnectionScope
from django_executors.exceptions import DeadlockError
from django_executors.naming import task_name
from django_executors.task import TaskFuture

from .pickling import load_outcome

if TYPE_CHECKING:
    from .remotework import RemoteWork

R = TypeVar("R")

#: The standard library's, which logs what callbacks raise.
logger = logging.getLogger("concurrent.futures")


#: What has come from a worker process: a task's result or error, pickled, whether it is an error, and
#: for how long tasks have been queued, and have run, since it has last sent something.
Outcome = tuple[bytes, bool, float, float]


class RemoteFuture(TaskFuture[R]):
    """What one thread of its executor settles; what its callbacks open is closed there."""

    work: RemoteWork | None = None
    #: The task's function.
    fn: Any = None

    def set_running_or_notify_cancel(self) -> bool:
        begins = super().set_running_or_notify_cancel()
        if begins and self.work is not None:
            self.work.note_begun()
        return begins

    def set_result(self, result: Any) -> None:
        outcome: Outcome = result
        packed, failed, *seconds = outcome
        with ConnectionScope():  # what it queries as it is loaded
            value, failed = load_outcome(packed, self.fn, failed=failed)
        if failed:
            self._fail(value, *seconds)
            return
        self.fn = None
        if self.work is not None:
            self.work.note_ended(False, *seconds)
        super().set_result(value)

    def set_exception(self, exception: BaseException | None) -> None:
        assert exception is not None
        # The pool broke: its tasks in the queue fail too.
        if not self.running() and not self.set_running_or_notify_cancel():
            return
        self._fail(exception)

    def _fail(self, error: BaseException, *seconds: float) -> None:
        fn, self.fn = self.fn, None
        if self.work is not None:
            self.work.note_ended(True, *seconds)
        self.fail(fn, error)

    def cancel(self) -> bool:
        try:
            return super().cancel()
        finally:
            # Who takes it out counts: two threads may cancel at once.
            if self.cancelled() and (work := vars(self).pop("work", None)) is not None:
                work.note_cancelled(self)

    def abandon(self) -> None:
        # A private name of the standard class's: `done` would wait for a parent's thread.
        if self._state in {"PENDING", "RUNNING"}:
            vars(self).pop("work", None)
            super().abandon()

    def _invoke_callbacks(self) -> None:
        # A private name of the standard class's: called when the result is there, and so when no
        # callback can be added any more. `cancel` calls it too, in whatever thread.
        if self.work is None or self.cancelled():
            super()._invoke_callbacks()  # type: ignore[misc]
            return
        if vars(self)["_done_callbacks"]:
            with _Callbacks(self.work):
                for callback in vars(self)["_done_callbacks"]:
                    try:
                        callback(self)
                    except BaseException:
                        # As in the standard class, where a SystemExit ends the thread that settles all.
                        logger.exception("exception calling callback for %r", self)
        self.work.note_done(self)

    def _waiting(self) -> AbstractContextManager[None] | None:
        work = self.work
        if work is not None and work.is_settling() and not self.done():
            raise DeadlockError(
                f"a done-callback waits for task={task_name(self.fn)} of the same pool, in the "
                "thread that would settle it: submit without waiting, or give `result` a timeout"
            )
        return None


class _Callbacks(ConnectionScope):
    """What surrounds the callbacks of a task: what they open is let go."""

    __slots__ = ("_work",)

    def __init__(self, work: RemoteWork) -> None:
        self._work = work

    def __enter__(self) -> None:
        super().__enter__()
        self._work.settling.add(threading.get_ident())

    def __exit__(self, *error: Any) -> None:
        self._work.settling.discard(threading.get_ident())
        super().__exit__(*error)
