"""Run a task where it is submitted: in the caller's thread, on the caller's connections.

In a coroutine those are not the calling thread's: Django's ORM refuses to work there, and asgiref runs
the ORM calls that the coroutine awaits in another thread. There the task runs too; the loop goes on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connections

from .arguments import check_timeout
from .base import Books, Executor, ExecutorStats
from .connections import hook
from .connections.ledger import current_holder, next_serial
from .context import run_in_caller, runs_event_loop
from .exceptions import DeadlockError
from .loading import RowsOf
from .naming import task_name
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

    def stand_for(self, standard: concurrent.futures.Future[R]) -> None:
        """Give this future, too, what this one gets."""

        def hand_over(done: Any) -> None:
            done.hand_over(standard)

        concurrent.futures.Future.add_done_callback(self, hand_over)  # which does not ask for the error


class AwaitedFuture(InlineFuture[R]):
    """The future of a task that a coroutine has submitted, and which the coroutine has to await."""

    def __init__(self, named: Callable[..., object]) -> None:
        super().__init__()
        self._named = named

    def _waiting(self) -> None:
        if not self.done() and runs_event_loop():
            raise DeadlockError(
                f"task={task_name(self._named)} runs inline, where this coroutine's ORM calls run, and "
                "has not ended: waiting here would block the event loop, so await the future"
            )


def run_now(
    books: Books,
    named: Callable[..., object],
    call: tuple[Callable[..., R], tuple[Any, ...], dict[str, Any]],
    before: Callable[[], contextvars.Context | None] = lambda: None,
) -> InlineFuture[R]:
    """Run this task and return its future, which is done, but in a coroutine.

    Args:
        books: where it is counted.
        before: returns the context that it runs in; None: a copy of the caller's.

    Raises:
        KeyboardInterrupt: Ctrl-C came while the task ran.
    """
    # Before the `try`: Ctrl-C may come at any moment.
    future: InlineFuture[R] = AwaitedFuture(named) if runs_event_loop() else InlineFuture()
    try:
        if isinstance(future, AwaitedFuture):
            _begin_where_the_orm_works(partial(_run_there, future, books, named, call, before))
        else:
            _run(future, books, named, call, before, raised=KeyboardInterrupt)
        return future
    finally:
        del future, call  # the error's frames lead back to this one: no cycle


def _begin_where_the_orm_works(run: Callable[[], None]) -> None:
    """Have asgiref call this where it runs the ORM calls of the calling coroutine, and do not wait."""
    coroutine = sync_to_async(run)()
    # As a task of the loop it would begin later, or never if the loop ends before. When it first waits,
    # it has handed over the call, with the caller's context, and has nothing else to do than to wait.
    context = contextvars.copy_context()
    context.run(coroutine.send, None)
    context.run(coroutine.close)


def _run_there(future: InlineFuture[R], *args: Any) -> None:
    with callers_connections():  # for callbacks too
        _run(future, *args)


def _run(
    future: InlineFuture[R],
    books: Books,
    named: Callable[..., object],
    call: tuple[Callable[..., R], tuple[Any, ...], dict[str, Any]],
    before: Callable[[], contextvars.Context | None],
    *,
    raised: type[BaseException] | tuple[()] = (),
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    began = books.begin_in_caller()
    failed = True
    fn, args, kwargs = call
    try:
        with callers_connections():
            if (context := before()) is None:
                context = contextvars.copy_context()
            result = run_in_caller(context, named, fn, *args, **kwargs)
        failed = False
    except raised:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the future's
        future.fail(named, error)
    else:
        future.set_result(result)
    finally:
        books.end_in_caller(named, began, failed=failed)
        del future, call, args, kwargs  # as in `run_now`


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

    In a coroutine, the task runs where the coroutine's own ORM calls run, on their connection and in
    their transaction, and its future must be awaited, as by `asyncio.wrap_future`: until it is done,
    `result()` raises `DeadlockError`. With DJANGO_ALLOW_ASYNC_UNSAFE it runs at once there too.
    """

    def __init__(self) -> None:
        self._books = Books()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Run `fn(*args, **kwargs)` and return its future, which is done, but in a coroutine.

        Raises:
            RuntimeError: after `shutdown`.
            KeyboardInterrupt: Ctrl-C came while the task ran; every other exception of the task's is
                in the future.
        """
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return run_now(self._books, fn, (fn, args, kwargs))

    def _submit_loading(self, make: Callable[[], RowsOf]) -> None:
        return None

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        timeout: float | None = None,
        cancel_queries: bool = False,
    ) -> None:
        """Refuse tasks from now on. There is nothing to wait for, and nothing to cancel.

        Raises:
            TypeError, ValueError: a pool would refuse this timeout.
        """
        check_timeout(timeout, wait=wait, cancel_queries=cancel_queries)
        self._is_shut_down = True

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers. Those of connections, the callers', are 0."""
        return self._books.stats()
