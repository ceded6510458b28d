"""Run a task where it is submitted: in the caller's thread, on the caller's connections."""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import Any, ParamSpec, TypeVar

from django_executors.lifecycle.borrowing import callers_connections
from django_executors.lifecycle.context import run_in_caller

from .futures import TaskFuture
from .work import Work

P = ParamSpec("P")
R = TypeVar("R")

#: A mark for each `run_inline` that is in force: every executor of the process then runs its tasks so.
switched_on: list[None] = []


class InlineFuture(TaskFuture[R]):
    """The future of a task that has run by the time its `submit` returns, and so do its callbacks."""

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        with callers_connections():
            super().add_done_callback(fn)


def run_now(work: Work, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> InlineFuture[R]:
    """Run this task and return its future, which is done.

    Args:
        work: where it is counted.

    Raises:
        KeyboardInterrupt: Ctrl-C came while the task ran.
    """
    future: InlineFuture[R] = InlineFuture()
    future.set_running_or_notify_cancel()
    began = work.begin_in_caller()
    failed = True
    try:
        with callers_connections():
            result = run_in_caller(fn, *args, **kwargs)
        failed = False
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the future's
        future.failed_fn = fn
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        work.end_in_caller(began, failed=failed)
    try:
        return future
    finally:
        del future  # the error's frames lead back to this one: no cycle


class InCallersThreads:
    """How a pool's tasks run in their callers' threads: each thread is to them what a worker is."""

    def __init__(
        self,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        *,
        inherit_context: bool,
        broken: type[BrokenExecutor],
    ) -> None:
        self._broken = broken
        self._initializer = initializer
        self._initargs = initargs
        self._inherit_context = inherit_context
        self._local = threading.local()

    def prepared(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Return the function that is to run in the place of this one."""
        if self._initializer is None and self._inherit_context:
            return fn

        @functools.wraps(fn)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            context = self._initialized()
            return fn(*args, **kwargs) if self._inherit_context else context.run(fn, *args, **kwargs)

        return run

    def _initialized(self) -> contextvars.Context:
        """Return a copy of what the initializer left in this thread, in which it runs once."""
        if not hasattr(self._local, "context"):
            self._local.context = contextvars.Context()
            try:
                if self._initializer is not None:
                    self._local.context.run(self._initializer, *self._initargs)
            except BaseException as error:
                del self._local.context
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise self._broken("the initializer failed, and the task did not run") from error
        context: contextvars.Context = self._local.context
        return context.copy()
