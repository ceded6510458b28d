"""One task and its future: an error that nobody hears, and a wait that could never end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from .clock import Clock
from .context import Changes
from .exceptions import ExecutorError
from .naming import log, task_name

R = TypeVar("R")

# Looked up once: a task that does nothing is to cost next to nothing.
_future = concurrent.futures.Future.__init__
_now = Clock.monotonic

logger = logging.getLogger(__name__)


class _Unheard:
    """The error of a task, for which nobody has asked: logged when it is thrown away with its future.

    This is how asyncio's futures do it, too. An object of its own, so that the future of a task that
    succeeds costs nothing more.
    """

    __slots__ = ("_error", "_fn", "_pid")

    def __init__(self, fn: Any, error: BaseException) -> None:
        self._fn = fn
        self._pid = os.getpid()
        self._error: BaseException | None = error

    def hear(self) -> None:
        self._fn = self._error = None

    def __del__(self) -> None:
        # In a forked child it is the parent's to tell; as the interpreter ends there is no log.
        if self._error is not None and self._pid == os.getpid() and not sys.is_finalizing():
            log(
                logger,
                logging.ERROR,
                "task=%(task)s failed, and nobody has asked for its result",
                exc_info=self._error,
                task=task_name(self._fn),
            )


class TaskFuture(concurrent.futures.Future[R]):
    """What `submit` returns: the standard future, which a coroutine may `await`."""

    _was_asked = False
    _unheard: _Unheard | None = None

    def result(self, timeout: float | None = None) -> R:
        """Return the task's result, or raise its error, as the standard class does.

        Raises:
            DeadlockError: called without a timeout in a worker of the task's own pool, where the wait
                could never end.
        """
        try:
            if timeout is not None or (waiting := self._waiting()) is None:
                return super().result(timeout)
            with waiting:
                return super().result()
        except BaseException as error:
            # It may have failed just as the time was over.
            if self.done() and not self.cancelled() and super().exception() is error:
                self.hear()
            raise
        finally:
            del self  # which is in the error's traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's error, or None, as the standard class does.

        Raises:
            DeadlockError: as `result` does.
        """
        if timeout is not None or (waiting := self._waiting()) is None:
            error = super().exception(timeout)
        else:
            with waiting:
                error = super().exception()
        self.hear()
        return error

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        self.hear()
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait in a coroutine, as `asyncio.wrap_future` has it: cancelled there, cancelled here."""
        return asyncio.wrap_future(self).__await__()

    def hear(self) -> None:
        """Somebody asks, or will be told: the error is not to be logged."""
        self._was_asked = True
        if self._unheard is not None:
            self._unheard.hear()

    def fail(self, fn: Any, error: BaseException) -> None:
        """Give it this error, of this function."""
        unheard = _Unheard(fn, error)
        self._unheard = unheard
        if self._was_asked:  # in this order: another thread may ask now
            unheard.hear()
        concurrent.futures.Future.set_exception(self, error)

    def abandon(self) -> None:
        """In a forked child: it is the parent's, and nobody is to wait for it here."""
        # Anew: a thread that is not here may have held its lock, and the callbacks are the parent's.
        concurrent.futures.Future.__init__(self)
        concurrent.futures.Future.set_exception(
            self,
            ExecutorError(
                f"this task belongs to the parent process, which has forked: pid={os.getppid()}"
            ),
        )

    def hand_over(self, standard: concurrent.futures.Future[R]) -> None:
        """Give this future what this one, which is done, has."""
        if standard.set_running_or_notify_cancel():
            if (error := super().exception()) is None:
                standard.set_result(super().result())
            else:
                standard.set_exception(error)

    def _waiting(self) -> AbstractContextManager[None] | None:
        """Return what surrounds a wait without a timeout, in the calling thread."""
        return None


class Worker:
    """A thread of a pool, as far as a task knows it."""

    __slots__ = ()

    def waiting_for(self, task: Task[Any]) -> AbstractContextManager[None] | None:
        """Return what surrounds its wait for this task; None: the task is no one of its pool's."""
        raise NotImplementedError


class _Current(threading.local):
    worker: Worker | None = None


#: The worker that the calling thread is.
current = _Current()


class Queue(Protocol):
    """What a task knows of where it was submitted."""

    def task_cancelled(self) -> None:
        """One that had not begun was cancelled."""
        ...


class Task(TaskFuture[R]):
    """A call that a pool queues, and its future."""

    #: Where it is queued or runs; None once it is done, or cancelled.
    queue: Queue | None = None
    #: What a replaced `submit` has made of it.
    _standard: concurrent.futures.Future[R] | None = None

    def __init__(
        self,
        queue: Queue,
        named: Callable[..., object],
        call: tuple[Callable[..., R], tuple[Any, ...], dict[str, Any]],
        context: contextvars.Context | None,
        changes: Changes,
    ) -> None:
        """Make it.

        Args:
            named: the task's function, whose name is logged.
            call: what is called: that function, or a wrapper of it, and its arguments.
            context: the context that it runs in; None: its worker's.
            changes: what is called in it before.
        """
        _future(self)
        self.queue = queue
        self.named: Any = named
        self._call: Any = call
        self._context = context
        self._changes = changes
        self._unclaimed = True
        self.queued_at = _now()

    def stand_for(self, standard: concurrent.futures.Future[R]) -> None:
        """Give this future, too, what this one gets."""
        self._standard = standard

    def run(self, of_worker: contextvars.Context | None) -> tuple[Any, BaseException | None]:
        """Call it and return its result or its error. Called once."""
        (fn, args, kwargs), context, changes = self._call, self._context, self._changes
        self._call = self._context = None
        self._changes = ()
        try:
            if context is None:
                context = contextvars.Context() if of_worker is None else of_worker.copy()
            if changes:
                context.run(_make, changes)
            return context.run(fn, *args, **kwargs), None
        except BaseException as error:  # noqa: BLE001 - it is the future's
            return None, error
        finally:
            # The error's traceback has this frame, and whoever keeps it would keep the request.
            del self, fn, args, kwargs, context, changes, of_worker

    def resolve(self, result: Any, error: BaseException | None) -> None:
        """Give it what `run` has returned. Its callbacks run here."""
        standard, named = self._standard, self.named
        self.queue = self.named = None
        if error is None:
            self.set_result(result)
        else:
            self.fail(named, error)
        if standard is not None:
            self._standard = None
            self.hand_over(standard)

    def claim(self) -> bool:
        """Take it, to run or to cancel it; False if another thread has. Takes no lock."""
        try:
            del self._unclaimed
        except AttributeError:
            return False
        return True

    def drop_call(self) -> None:
        """It will not be called."""
        self._call = self._context = None
        self._changes = ()

    def cancel(self) -> bool:
        return self.cancel_pending() or self.cancelled()

    def cancel_pending(self) -> bool:
        """Cancel it, and tell whether this call has."""
        if not self.claim():
            return False
        queue, self.queue = self.queue, None
        standard, self._standard = self._standard, None
        self.drop_call()
        try:
            super().cancel()
        finally:  # whatever a callback has raised
            self.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
            if standard is not None and standard.cancel():
                standard.set_running_or_notify_cancel()
            if queue is not None:
                queue.task_cancelled()
        return True

    def _waiting(self) -> AbstractContextManager[None] | None:
        worker = current.worker
        return None if worker is None else worker.waiting_for(self)


def _make(changes: Changes) -> None:
    for change in changes:
        change()
