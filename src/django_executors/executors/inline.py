"""Run a task where it is submitted: in the caller's thread, on the caller's connections."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, ParamSpec, TypeVar

from django_executors.lifecycle.borrowing import callers_connections

P = ParamSpec("P")
R = TypeVar("R")

#: A mark for each `run_inline` that is in force: every executor of the process then runs its tasks so.
switched_on: list[None] = []


class InlineFuture(concurrent.futures.Future[R]):
    """The future of a task that has run by the time its `submit` returns, and so do its callbacks."""

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        with callers_connections():
            super().add_done_callback(fn)


def run_now(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> InlineFuture[R]:
    """Run this task and return its future, which is done.

    Raises:
        KeyboardInterrupt: Ctrl-C came while the task ran.
    """
    future: InlineFuture[R] = InlineFuture()
    future.set_running_or_notify_cancel()
    try:
        with callers_connections():
            result = fn(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the future's
        future.set_exception(error)
    else:
        future.set_result(result)
    try:
        return future
    finally:
        del future  # the error's frames lead back to this one: no cycle


class OnceInEachThread:
    """A pool's initializer, where tasks run in their callers' threads: before the first task in each."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._initializer = initializer
        self._initargs = initargs
        self._local = threading.local()

    def before(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Return the function that is to run in the place of this one."""
        initializer = self._initializer
        if initializer is None or hasattr(self._local, "initialized"):
            return fn

        @functools.wraps(fn)
        def first(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                initializer(*self._initargs)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise BrokenThreadPool("the initializer failed, and the task did not run") from error
            self._local.initialized = True
            return fn(*args, **kwargs)

        return first
