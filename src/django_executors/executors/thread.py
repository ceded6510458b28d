"""The thread pool."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .base import begin_worker, run_task
from .workqueue import WorkQueue

P = ParamSpec("P")
R = TypeVar("R")


class ThreadPoolExecutor(concurrent.futures.ThreadPoolExecutor):
    """Run calls in threads that let go of their database connections: the standard pool for Django.

    It is `concurrent.futures.ThreadPoolExecutor` in all else: the same constructor, `submit`, `map`,
    `shutdown`, `with`, and a subclass, so that `wait`, `as_completed`, `asyncio.wrap_future`,
    `loop.run_in_executor` and `loop.set_default_executor` take it.

    Tasks, their done-callbacks and the initializer run in the pool's worker threads, and each worker
    has connections of its own, as any thread under Django has. What a task opened, on every alias, is
    closed in its worker before its future resolves, however it ended. What an initializer or a
    callback opened is closed before the worker waits; what is left when a worker ends, as it ends.
    Connections that a worker did not open (the submitter's, a test's, one lent to the thread) are
    never touched.

    Args:
        max_workers: the most threads at once; default `min(32, cpus + 4)`.
        thread_name_prefix: how the threads, and the executor in `all_connections()`, are called.
        initializer: called in each worker before its first task. If it raises, pending futures get
            `BrokenThreadPool`.
        initargs: its arguments.

    Raises:
        ValueError: max_workers is not greater than 0.
        TypeError: initializer is not callable, or max_workers is no number.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        super().__init__(max_workers, thread_name_prefix, begin_worker, (initializer, initargs))
        self._work_queue = WorkQueue()

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Queue `fn(*args, **kwargs)` for a worker and return its future, as the standard class does.

        Raises:
            RuntimeError: after `shutdown`, or while the interpreter exits.
            BrokenThreadPool: an initializer failed.
        """
        return super().submit(run_task, fn, *args, **kwargs)
