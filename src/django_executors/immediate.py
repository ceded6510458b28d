"""Run a task where it is submitted: in the caller's thread, on the caller's connections."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.db import connections

from .arguments import check_timeout
from .base import Books, Executor, ExecutorStats
from .connections import hook
from .connections.ledger import current_holder, next_serial
from .context import run_in_caller
from .task import TaskFuture

P = ParamSpec("P")
R = TypeVar("R")

#: How many `run_inline` are in force: every executor of the process then runs its tasks so.
_inline = 0


def switch_inline(by: int) -> None:
    global _inline
    _inline += by


def is_inline() -> bool:
    return _inline > 0


@contextlib.contextmanager
def callers_connections() -> Iterator[None]:
    """Have `close()` and `connect()` do nothing, in this block, to what is open in the calling thread.

    Tasks that were written for worker threads close connections at their end, as the usual recipes
    do. Here that would end the caller's transaction. What the task itself connects, it may close, and
    what the server has ended is closed as ever.
    """
    holder = current_holder()
    outer = holder.shield
    for wrapper in connections.all(initialized_only=True) if settings.configured else ():
        if wrapper.connection is not None:
            hook.ensure_watched(wrapper)
    try:
        holder.set_shield(next_serial())
        yield
    finally:
        holder.set_shield(outer)


class InlineFuture(TaskFuture[R]):
    """The future of a task that has run by the time its `submit` returns, and so do its callbacks."""

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[R]], object]) -> None:
        with callers_connections():
            super().add_done_callback(fn)


def run_now(
    books: Books,
    named: Callable[..., object],
    call: tuple[Callable[..., R], tuple[Any, ...], dict[str, Any]],
    before: Callable[[], contextvars.Context | None] = lambda: None,
) -> InlineFuture[R]:
    """Run this task and return its future, which is done.

    Args:
        books: where it is counted.
        before: returns the context that it runs in; None: a copy of the caller's.

    Raises:
        KeyboardInterrupt: Ctrl-C came while the task ran.
    """
    future: InlineFuture[R] = InlineFuture()
    future.set_running_or_notify_cancel()
    began = books.begin_in_caller()
    failed = True
    fn, args, kwargs = call
    try:
        with callers_connections():
            if (context := before()) is None:
                context = contextvars.copy_context()
            result = run_in_caller(context, named, fn, *args, **kwargs)
        failed = False
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the future's
        future.fail(named, error)
    else:
        future.set_result(result)
    finally:
        books.end_in_caller(began, failed=failed)
    try:
        return future
    finally:
        del future, call, args, kwargs  # the error's frames lead back to this one: no cycle


class InCallersThreads:
    """How a pool's tasks run in their callers' threads: each thread is to them what a worker is."""

    def __init__(
        self,
        books: Books,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        *,
        inherit_context: bool,
        broken: type[concurrent.futures.BrokenExecutor],
    ) -> None:
        self._books = books
        self._broken = broken
        self._initializer = initializer
        self._initargs = initargs
        self._inherit_context = inherit_context
        self._local = threading.local()

    def submit(self, named: Any, call: Any) -> InlineFuture[Any]:
        """Run it now."""
        return run_now(self._books, named, call, self._initialized)

    def _initialized(self) -> contextvars.Context | None:
        """Run the initializer, once in each thread, and return a copy of what it left there.

        None: the task inherits its caller's context.
        """
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
        return None if self._inherit_context else self._local.context.copy()


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
        self._books = Books()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Run `fn(*args, **kwargs)` and return its future, which is done.

        Raises:
            RuntimeError: after `shutdown`.
            KeyboardInterrupt: Ctrl-C came while the task ran; every other exception of the task's is
                in the future.
        """
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return run_now(self._books, fn, (fn, args, kwargs))

    def _submit_loading(self, fn: Callable[[Any], Any], queryset: Any) -> None:
        return None

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
        return self._books.stats()
