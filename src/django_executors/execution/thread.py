"""The thread pool."""

from __future__ import annotations

import concurrent.futures
import contextvars
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, Literal, ParamSpec, TypeVar

from django_executors.arguments import check_bound, check_seconds, check_timeout, check_workers
from django_executors.lifecycle import context
from django_executors.lifecycle.holder import current_holder
from django_executors.lifecycle.transactions import warn_if_open

from . import inline, living
from .base import AroundTasks, begin_worker
from .bound import Bound, NoRoom
from .ending import end
from .executor import Executor
from .immediate import ImmediateExecutor
from .stats import ExecutorStats
from .work import Work
from .workqueue import WorkQueue, workers_of

P = ParamSpec("P")
R = TypeVar("R")

#: From Python 3.14 on, threads may start in a copy of the context of the thread that starts them.
_THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", False))


class ThreadPoolExecutor(Executor, concurrent.futures.ThreadPoolExecutor):
    """Run calls in threads that let go of their database connections: the standard pool for Django.

    It is `concurrent.futures.ThreadPoolExecutor` in all else: the same constructor, `submit`, `map`,
    `shutdown`, `with`, and a subclass, so that `wait`, `as_completed`, `asyncio.wrap_future`,
    `loop.run_in_executor` and `loop.set_default_executor` take it.

    Tasks, the initializer, and done-callbacks that were added before the task ended run in the pool's
    worker threads, and each worker has connections of its own, as any thread under Django has. When a
    task ends, in whatever way, and no other is queued, what it opened on every alias is closed in its
    worker before its future resolves. While more tasks are queued than workers keep connections, a
    worker may keep its own for the next task, which gets a fresh session on it (CONN_MAX_AGE = 0) or
    the same one until its max age. What an initializer or a callback opened is let go before the
    worker waits; what is left when a worker ends, as it ends. Connections that a worker did not open
    (the submitter's, a test's, one lent to the thread) are never touched. Cache clients are let go by
    the same rules: a worker has one set of its own for all its tasks, never the submitter's.

    Args:
        max_workers: the most threads at once; default `min(32, cpus + 4)`.
        thread_name_prefix: how the threads, and the executor in `all_connections()`, are called.
        initializer: called in each worker before its first task. If it raises, pending futures get
            `BrokenThreadPool`.
        initargs: its arguments.
        conn_max_idle: for how many seconds a worker may keep its connections while it waits for work;
            never beyond their max age, and not at all under EXECUTORS_MAX_CONNECTIONS. When you would
            want it: tasks come one at a time, and connecting takes longer than they do. Default 0.0:
            an idle worker holds nothing.
        max_pending: how many tasks may be submitted and not begun. When you would want it: tasks come
            faster than they are done, and each keeps its arguments in memory. Default None: any number.
        when_full: what `submit` does when there are as many: "block" until one has begun or was
            cancelled, or "raise" `QueueFull`. In one of the pool's own workers, and where an event loop
            runs in the calling thread, it raises either way: waiting there could never end.
        inherit_context: run each task in a copy of its submitter's contextvars, with the submitter's
            language, time zone, URLconf and script prefix. When you would want False: what the
            initializer has set is to hold for each task. Either way nothing that a task sets reaches
            its submitter or the next task.

    Raises:
        ValueError: max_workers or max_pending is not greater than 0, conn_max_idle is below 0, or
            when_full is neither "block" nor "raise", or is "raise" without max_pending.
        TypeError: initializer is not callable, conn_max_idle is no number, max_workers or max_pending
            is no int, or inherit_context is no bool.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        conn_max_idle: float = 0.0,
        max_pending: int | None = None,
        when_full: Literal["block", "raise"] = "block",
        inherit_context: bool = True,
    ) -> None:
        check_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        conn_max_idle = check_seconds("conn_max_idle", conn_max_idle)
        check_bound(max_pending, when_full)
        if not isinstance(inherit_context, bool):
            raise TypeError(f"inherit_context must be True or False, not {inherit_context!r}")
        self._conn_max_idle = conn_max_idle
        self._bound = max_pending, when_full
        self._inherit_context = inherit_context
        self._users_initializer = initializer, initargs
        self._immediate = ImmediateExecutor()
        self._around = AroundTasks(inherit_context)
        self._begin(max_workers, thread_name_prefix)

    def _begin(self, max_workers: int | None, thread_name_prefix: str) -> None:
        """Be a pool without threads and work."""
        initializer, initargs = self._users_initializer
        max_pending, when_full = self._bound
        bound = None if max_pending is None else Bound(max_pending, blocks=when_full == "block")
        work = Work(bound)
        queue = WorkQueue(work, self._around, self._conn_max_idle)
        queue.executor = weakref.ref(self)
        super().__init__(max_workers, thread_name_prefix, begin_worker, (queue, initializer, initargs))
        # A private name of the standard class's: the number that it has chosen.
        work.max_workers = self._most_workers = self._max_workers
        self._work = self._immediate._work = work
        self._queue = self._work_queue = queue
        self._in_callers_threads = inline.InCallersThreads(
            initializer, initargs, inherit_context=self._inherit_context, broken=BrokenThreadPool
        )
        living.add(self, queue)

    def _begin_anew(self) -> None:
        # Private names of the standard class's: what it was made with, or chose by itself.
        self._begin(self._max_workers, self._thread_name_prefix or "")
        if self._immediate._is_shut_down:
            super().shutdown(wait=False)

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Queue `fn(*args, **kwargs)` for a worker and return its future, as the standard class does.

        Raises:
            QueueFull: `max_pending` tasks have not begun, and waiting is not wanted or could never end.
            RuntimeError: after `shutdown`, or while the interpreter exits.
            BrokenThreadPool: an initializer failed.
        """
        if inline.switched_on:
            return self._immediate.submit(self._in_callers_threads.prepared(fn), *args, **kwargs)
        if (holder := current_holder()).entries:
            warn_if_open(holder, fn)
        around = self._around
        inherited = context.inherit() if self._inherit_context else None
        work = self._work
        try:
            while True:
                around.call = fn, inherited
                try:
                    return super().submit(fn, *args, **kwargs)
                except NoRoom:
                    pass
                work.wait_for_room()
        except BaseException:
            if work.bound is not None:
                work.bound.pass_on()
            raise
        finally:
            around.call = None

    def _adjust_thread_count(self) -> None:
        # A private method of the standard class's, which takes its time to find that all have started.
        if len(self._threads) < self._max_workers:
            start = super()._adjust_thread_count
            try:
                if _THREADS_INHERIT:  # a worker would keep the context that it starts in for ever
                    contextvars.Context().run(start)
                else:
                    start()
            except BaseException:
                if not self._threads:  # to run the task, whose future nobody gets
                    self._queue.cancel_pending(Counter())
                raise

    def _initializer_failed(self) -> None:
        # A private method of the standard class's: it may take away by what a shutdown wakes workers up.
        super()._initializer_failed()
        self._queue.put(None)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None
    ) -> None:
        """Refuse tasks from now on, as the standard class does; with a timeout, return when it is over.

        At the timeout, tasks that have not begun are cancelled: they do not run any more, and their
        futures' callbacks run in the calling thread. Those that run cannot be stopped. One ERROR record
        says how many of both there were, by name; there is none if all tasks have run. An exception
        that ends the waiting, such as KeyboardInterrupt, cancels nothing.

        Args:
            wait: return when all tasks have run and the workers have ended.
            cancel_futures: cancel at once those that have not begun. With a timeout they are logged too.
            timeout: for how many seconds to wait at most. When you would want it: the process is about
                to end, and whoever ends it will not wait for ever. Default None: as long as it takes.

        Raises:
            TypeError: timeout is no number.
            ValueError: timeout is below 0, or given together with `wait=False`.
            RuntimeError: called with a timeout by one of the pool's own workers, which would wait for
                itself. (Without one, the standard class raises it too, having refused tasks.)
        """
        seconds = check_timeout(timeout, wait=wait)
        if seconds is not None and self._work.is_mine():
            raise RuntimeError("shutdown(timeout=...) was called in a worker, and would wait for itself")
        self._immediate.shutdown()
        super().shutdown(wait=False, cancel_futures=cancel_futures and seconds is None)
        if self._work.bound is not None:
            self._work.bound.close()
        if seconds is not None:
            workers = workers_of(self)
            name = workers[0].name.rpartition("_")[0] if workers else None
            end(name, workers, self._queue, seconds, cancel_at_once=cancel_futures)
        elif wait:
            super().shutdown()

    def stats(self) -> ExecutorStats:
        """Return what was done so far, in numbers that are all of the same moment.

        Any thread may call this, at any time, after `shutdown` too. It takes no lock that a task needs.
        """
        return self._work.stats()
