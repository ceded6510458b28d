"""The future of a task."""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import os
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from django_executors.exceptions import ExecutorError
from django_executors.lifecycle.holder import current_holder
from django_executors.lifecycle.naming import listed, task_name

if TYPE_CHECKING:
    from .work import Work

R = TypeVar("R")

logger = logging.getLogger(__name__)


class _Unheard:
    """The error of a task, for which nobody has asked: logged when it is thrown away with its future.

    This is how asyncio's futures do it, too. An object of its own, so that the future of a task that
    succeeds costs nothing more.
    """

    __slots__ = ("__weakref__", "_error", "_fn", "_others")

    def __init__(self, fn: Any, error: BaseException, others: Broken | None) -> None:
        self._fn = fn
        self._error: BaseException | None = error
        self._others = others
        _all.add(weakref.ref(self, _all.discard))

    def hear(self) -> None:
        self._fn = self._error = self._others = None

    def tell(self) -> None:
        fn, error, others = self._fn, self._error, self._others
        self.hear()
        if others is not None:
            others.names[task_name(fn)] += 1
        elif error is not None:
            logger.error(
                "task=%s failed, and nobody has asked for its result", task_name(fn), exc_info=error
            )

    __del__ = tell


class Broken:
    """What is told together: the tasks that an executor which broke has failed, and nobody asked for."""

    __slots__ = ("__weakref__", "_error", "names")

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.names: Counter[str] = Counter()

    def __del__(self) -> None:
        if self.names:
            logger.error(
                "tasks=%s failed as their executor broke, and nobody has asked for their results",
                listed(self.names),
                exc_info=self._error,
            )


_all: set[weakref.ref[_Unheard]] = set()


@atexit.register
def _tell_all() -> None:
    """At the end of the process, as long as there is a log."""
    for reference in list(_all):
        if (unheard := reference()) is not None:
            unheard.tell()


def _after_fork_in_child() -> None:
    # It is the parent's to tell.
    for reference in list(_all):
        if (unheard := reference()) is not None:
            unheard.hear()


os.register_at_fork(after_in_child=_after_fork_in_child)


class TaskFuture(concurrent.futures.Future[R]):
    """A future that says what it knows: an error that nobody hears, a wait that cannot end."""

    #: What the task is a part of.
    work: Work | None = None
    #: By `time.monotonic()`.
    queued_at = 0.0
    #: What has failed, once it has.
    failed_fn: Any = None
    _was_asked = False
    _unheard: _Unheard | None = None

    def result(self, timeout: float | None = None) -> R:
        """Return the task's result, or raise its error, as the standard class does.

        Raises:
            DeadlockError: called without a timeout in a worker of the task's own pool, where the wait
                could never end.
        """
        try:
            if (waits := self._waits_of_its_pool(timeout)) is None:
                return super().result(timeout)
            with waits:
                return super().result()
        except BaseException as error:
            # It may have failed just as the time was over.
            if self.done() and not self.cancelled() and super().exception() is error:
                self._hear()
            raise
        finally:
            del self  # which is in the error's traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's error, or None, as the standard class does.

        Raises:
            DeadlockError: as `result` does.
        """
        if (waits := self._waits_of_its_pool(timeout)) is None:
            error = super().exception(timeout)
        else:
            with waits:
                error = super().exception()
        self._hear()
        return error

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        self._hear()
        super().add_done_callback(fn)

    def cancel(self) -> bool:
        try:
            return super().cancel()
        finally:
            # Who takes it out counts: two threads may cancel at once.
            if self.cancelled() and (work := vars(self).pop("work", None)) is not None:
                work.note_cancelled(self)

    def set_exception(self, exception: BaseException | None) -> None:
        fn = vars(self).pop("failed_fn", None)
        if fn is not None and not super().running():
            # An initializer has failed, and the pool drops what is queued.
            if not self.set_running_or_notify_cancel():
                return
            if self.work is not None:
                self.work.note_broken(self)
        super().set_exception(exception)
        if exception is not None:
            self._unheard = _Unheard(fn, exception, self._failed_with(exception))
            if self._was_asked:  # in this order: another thread may ask now
                self._unheard.hear()

    def _failed_with(self, error: BaseException) -> Broken | None:
        if self.work is None or not isinstance(error, concurrent.futures.BrokenExecutor):
            return None
        if isinstance(error, pickle.PickleError):  # this task's own
            return None
        others = self.work.broken()
        if others is None:
            others = Broken(error)
            self.work.broken = weakref.ref(others)
        return others

    def _hear(self) -> None:
        self._was_asked = True
        if self._unheard is not None:
            self._unheard.hear()

    def _waits_of_its_pool(self, timeout: float | None) -> AbstractContextManager[None] | None:
        """Return what notes the wait of a worker for a task of its own pool."""
        worker = current_holder().worker
        if timeout is not None or worker is None or self.work is None or not worker.is_of(self.work):
            return None
        return self.work.waits.waiting(self.work, worker, self)


def give_up(future: concurrent.futures.Future[Any]) -> None:
    """Make of a forked child's copy of the parent's future one that nobody waits for."""
    vars(future).pop("work", None)
    # Anew: a thread that is not here may have held its lock, and the callbacks are the parent's. As the
    # standard class does it: nobody here needs to hear of it.
    concurrent.futures.Future.__init__(future)
    concurrent.futures.Future.set_exception(
        future,
        ExecutorError(f"this task belongs to the parent process, which has forked: pid={os.getppid()}"),
    )
