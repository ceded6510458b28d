"""The executor that has no workers."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django_executors.arguments import check_timeout

from .executor import Executor
from .inline import run_now
from .stats import ExecutorStats
from .work import Work

P = ParamSpec("P")
R = TypeVar("R")


class ImmediateExecutor(Executor):
    """Run each call at once, in the caller's thread: for tests, for debugging, for a single core.

    `submit` returns when the task has run; its future is done, with the task's result or exception,
    and so `result()`, `wait`, `as_completed`, `map` and callbacks never wait. Callbacks run in the
    caller's thread too. Tasks may submit tasks. What sets it apart from a pool of one worker: a task
    that is slow holds up its submitter.

    A task runs on the caller's connections and in the caller's transaction: it sees uncommitted rows,
    and what it writes is rolled back with the rest. Nothing is closed when it ends. What was open when
    the task began, it cannot close itself: there, `connection.close()`, `connections.close_all()` and
    `close_old_connections()` do nothing, unless the server has ended the connection. As everywhere in
    a transaction, a database error that is not caught in an `atomic` of the task's own spoils it.

    Where an event loop runs in the caller's thread, Django's ORM refuses to work in the task: submit
    from a synchronous function.
    """

    def __init__(self) -> None:
        self._is_shut_down = False
        self._work = Work()

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Run `fn(*args, **kwargs)` and return its future, which is done.

        Raises:
            RuntimeError: after `shutdown`.
            KeyboardInterrupt: Ctrl-C came while the task ran; every other exception of the task's is
                in the future.
        """
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return run_now(self._work, fn, *args, **kwargs)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Refuse tasks from now on. There is nothing to wait for, and nothing to cancel.

        Raises:
            TypeError, ValueError: a pool would refuse this timeout.
        """
        check_timeout(timeout, wait=wait)
        self._is_shut_down = True

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers. Those of connections, the callers', are 0."""
        return self._work.stats()
