"""Submit when the transaction commits that the calling thread is in."""

from __future__ import annotations

import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.asyncio import async_unsafe

from .connections.wrapper import is_in_atomic, is_in_transaction
from .exceptions import DeadlockError
from .naming import task_name
from .task import TaskFuture

P = ParamSpec("P")
R = TypeVar("R")


def submit_on_commit(
    submit: Callable[..., TaskFuture[R]],
    fn: Callable[P, R],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> TaskFuture[R]:
    """See `Executor.submit_on_commit`."""
    uncommitted = _uncommitted_here()
    if not uncommitted:
        return submit(fn, *args, **kwargs)
    context = contextvars.copy_context()
    future: OnCommitFuture[R] = OnCommitFuture(
        partial(context.run, submit, fn, *args, **kwargs), fn, [each.alias for each in uncommitted]
    )
    try:
        for wrapper in uncommitted:
            wrapper.on_commit(_OnCommit(future))
    except BaseException:
        future.cancel()
        raise
    if any(wrapper.closed_in_transaction for wrapper in uncommitted):
        future.cancel()
    return future


@async_unsafe("You cannot call submit_on_commit from an async context - use sync_to_async.")
def _uncommitted_here() -> list[BaseDatabaseWrapper]:
    """Return the calling thread's wrappers that have yet to commit what is done on them now.

    Of the transactions that a TestCase makes for its test, one: as for `on_commit`, that of "default".
    """
    found = [*filter(is_in_transaction, connections.all(initialized_only=True))]
    own = [wrapper for wrapper in found if not wrapper.in_atomic_block or is_in_atomic(wrapper)]
    return own or sorted(found, key=lambda wrapper: wrapper.alias != DEFAULT_DB_ALIAS)[:1]


class _OnCommit:
    """What a wrapper's `on_commit` gets: told of the commit by Django's call, of a rollback by its end.

    Django throws it away when the transaction rolls back, or its savepoint, or the connection is closed;
    so its only reference is Django's.
    """

    __slots__ = ("_future",)

    def __init__(self, future: OnCommitFuture[Any]) -> None:
        self._future: OnCommitFuture[Any] | None = future

    def __call__(self) -> None:
        future, self._future = self._future, None
        if future is not None:  # a test may call what it has captured again
            future.committed()

    def __del__(self) -> None:
        if self._future is not None:
            self._future.cancel()


class OnCommitFuture(TaskFuture[R]):
    """The future of a task that is submitted when a transaction commits, and cancelled if it does not.

    It is pending until the task ends, and then gets what the future has that `submit` returned.
    """

    def __init__(
        self,
        submit: Callable[[], TaskFuture[R]],
        fn: Callable[..., R],
        aliases: list[str],
    ) -> None:
        super().__init__()
        self._fn = fn
        self._aliases = aliases
        self._left = len(aliases)
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        # Whoever takes it decides what becomes of the task: the commit, or who cancels.
        self._submit: Callable[[], TaskFuture[R]] | None = submit  # guarded by _lock
        self._submitted: TaskFuture[R] | None = None

    def committed(self) -> None:
        """One of the transactions has committed."""
        self._left -= 1
        if self._left or (submit := self._decide()) is None:
            return
        try:
            submitted = submit()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._submitted = submitted
            submitted.add_done_callback(self._end)
        finally:
            del self, submit  # which are in the error's traceback

    def cancel(self) -> bool:
        if self._decide() is not None:
            try:
                super().cancel()
            finally:  # whatever a callback has raised
                self.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
            return True
        submitted = self._submitted
        if submitted is not None:
            submitted.cancel()
        return self.cancelled()

    def running(self) -> bool:
        submitted = self._submitted
        return submitted is not None and submitted.running()

    def _decide(self) -> Callable[[], TaskFuture[R]] | None:
        with self._lock:
            submit, self._submit = self._submit, None
        return submit

    def _end(self, submitted: concurrent.futures.Future[R]) -> None:
        """What was submitted has ended."""
        if submitted.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif (error := submitted.exception()) is not None:
            self._fail(error)
        else:
            self.set_running_or_notify_cancel()
            self.set_result(submitted.result())
        self._submitted = None  # which refers to this one

    def _fail(self, error: BaseException) -> None:
        self.set_running_or_notify_cancel()
        self.fail(self._fn, error)

    def _waiting(self) -> AbstractContextManager[None] | None:
        if self._submit is not None and self._thread == threading.get_ident():
            raise DeadlockError(
                f"task={task_name(self._fn)} alias={','.join(self._aliases)} is submitted when this "
                "thread's transaction commits, and cannot end before: wait for it after the commit"
            )
        submitted = self._submitted
        return submitted._waiting() if isinstance(submitted, TaskFuture) else None
