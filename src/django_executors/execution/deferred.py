"""Tasks that are submitted when a transaction commits."""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django_executors.exceptions import DeadlockError
from django_executors.lifecycle import transactions
from django_executors.lifecycle.naming import task_name

from . import cancelling
from .futures import TaskFuture, give_up

P = ParamSpec("P")
R = TypeVar("R")


def submit_on_commit(
    submit: Callable[..., concurrent.futures.Future[R]],
    fn: Callable[P, R],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> concurrent.futures.Future[R]:
    """See `Executor.submit_on_commit`."""
    transactions_now = transactions.uncommitted_here()
    if not transactions_now:
        return submit(fn, *args, **kwargs)
    cancelling.begin()
    context = contextvars.copy_context()
    future: DeferredFuture[R] = DeferredFuture(
        partial(context.run, submit, fn, *args, **kwargs), fn, [each.alias for each in transactions_now]
    )
    try:
        for each in transactions_now:
            each.on_commit(transactions.OnCommit(future.note_commit, future.note_rollback))
    except BaseException:
        future.cancel()
        raise
    if any(each.closed_in_transaction for each in transactions_now):
        future.note_rollback()
    return future


class DeferredFuture(TaskFuture[R]):
    """The future of a task that is submitted when a transaction commits, and cancelled if it does not.

    It is pending until the task ends, and then gets what the future has that `submit` returned.
    """

    def __init__(
        self,
        submit: Callable[[], concurrent.futures.Future[R]],
        fn: Callable[..., R],
        aliases: list[str],
    ) -> None:
        super().__init__()
        self._fn = fn
        self._aliases = aliases
        self._uncommitted = aliases.copy()
        self._thread = threading.get_ident()
        # Whoever takes it out decides what becomes of the task: the commit, or who cancels.
        self._undecided = [submit]
        self._submitted: concurrent.futures.Future[R] | None = None
        _all.add(self)

    def retire(self) -> None:
        """In a forked child: the parent's transaction is not here, and its task is not done here."""
        self._undecided.clear()
        self._submitted = None
        # A private name of the standard class's: `done` would wait for a lock that nobody gives back.
        if self._state in {"PENDING", "RUNNING"}:
            give_up(self)

    def note_commit(self) -> None:
        """One of the transactions has committed."""
        self._uncommitted.pop()
        if self._uncommitted or (submit := self._decide()) is None:
            return
        try:
            submitted = submit()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._submitted = submitted
            submitted.add_done_callback(self._settle)
        finally:
            del self, submit  # which are in the error's traceback

    def note_rollback(self) -> None:
        """One of them has not. Any thread may call this, at any moment, in a collection too."""
        if self._decide() is not None:
            with self._condition:
                # A private name of the standard class's: `cancel` calls those that it finds there.
                callbacks = vars(self)["_done_callbacks"]
                self._done_callbacks: list[object] = []
                super().cancel()
            cancelling.deliver(self, callbacks)

    def cancel(self) -> bool:
        if self._decide() is not None:
            super().cancel()
            self.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
            return True
        submitted = self._submitted
        if submitted is not None:
            submitted.cancel()
        return self.cancelled()

    def running(self) -> bool:
        submitted = self._submitted
        return submitted is not None and submitted.running()

    def _decide(self) -> Callable[[], concurrent.futures.Future[R]] | None:
        try:
            return self._undecided.pop()
        except IndexError:
            return None

    def _settle(self, submitted: concurrent.futures.Future[R]) -> None:
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
        self.failed_fn = self._fn
        self.set_exception(error)

    def _waits_of_its_pool(self, timeout: float | None) -> AbstractContextManager[None] | None:
        if self._undecided and self._thread == threading.get_ident():
            raise DeadlockError(
                f"task={task_name(self._fn)} alias={','.join(self._aliases)} is submitted when this "
                "thread's transaction commits, and cannot end before: wait for it after the commit"
            )
        submitted = self._submitted
        if isinstance(submitted, TaskFuture):
            return submitted._waits_of_its_pool(timeout)
        return None


_all: weakref.WeakSet[DeferredFuture[Any]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for future in list(_all):
        future.retire()


os.register_at_fork(after_in_child=_after_fork_in_child)
