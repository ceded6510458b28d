"""The thread pool."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from . import inline, living
from .base import begin_worker, run_task
from .immediate import ImmediateExecutor
from .workqueue import WorkQueue

P = ParamSpec("P")
R = TypeVar("R")


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
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
    (the submitter's, a test's, one lent to the thread) are never touched.

    Args:
        max_workers: the most threads at once; default `min(32, cpus + 4)`.
        thread_name_prefix: how the threads, and the executor in `all_connections()`, are called.
        initializer: called in each worker before its first task. If it raises, pending futures get
            `BrokenThreadPool`.
        initargs: its arguments.
        conn_max_idle: for how many seconds a worker may keep its connections while it waits for work;
            never beyond their max age. When you would want it: tasks come one at a time, and
            connecting takes longer than they do. Default 0.0: an idle worker holds nothing.

    Raises:
        ValueError: max_workers is not greater than 0, or conn_max_idle is below 0.
        TypeError: initializer is not callable, or max_workers or conn_max_idle is no number.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        conn_max_idle: float = 0.0,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if isinstance(conn_max_idle, bool) or not isinstance(conn_max_idle, (int, float)):
            raise TypeError(f"conn_max_idle must be a number of seconds, not {conn_max_idle!r}")
        if not conn_max_idle >= 0:
            raise ValueError(f"conn_max_idle must be 0 or more seconds, not {conn_max_idle!r}")
        queue = WorkQueue(conn_max_idle)
        super().__init__(max_workers, thread_name_prefix, begin_worker, (queue, initializer, initargs))
        self._queue = self._work_queue = queue
        self._in_callers_thread = ImmediateExecutor()
        self._initializer_inline = inline.OnceInEachThread(initializer, initargs)
        living.add(queue)

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Queue `fn(*args, **kwargs)` for a worker and return its future, as the standard class does.

        Raises:
            RuntimeError: after `shutdown`, or while the interpreter exits.
            BrokenThreadPool: an initializer failed.
        """
        if inline.switched_on:
            return self._in_callers_thread.submit(self._initializer_inline.before(fn), *args, **kwargs)
        return super().submit(run_task, self._queue, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse tasks from now on, as the standard class does.

        Args:
            wait: return when all tasks have run and the workers have ended.
            cancel_futures: cancel those that have not begun.
        """
        self._in_callers_thread.shutdown()
        super().shutdown(wait, cancel_futures=cancel_futures)
