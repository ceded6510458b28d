"""A task's life.

submit ──► queue ──► run ──► settle ──► resolve ──► callbacks ──► settle ──► wait or next
(caller)             └───────────────────────── (worker) ────────────────────────────┘

submit      the standard `submit`, given the task's function, so that whatever replaces it on the
            standard class (tracing, error reporting) sees and wraps each task
queue       wraps the result in `run_task`
run         the task's function, called with its arguments, in a copy of its submitter's context
settle      what the task opened is closed, however it ended, before anybody hears of its end; or
            kept, if more tasks are queued than workers keep
resolve     the future gets the result or the exception
callbacks   done-callbacks run in the worker too, and may use the ORM; so may an initializer
            before the first task: hence the second time, where the worker asks for work
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, ParamSpec, Protocol, TypeVar

from django_executors.lifecycle import context, guard
from django_executors.lifecycle.holder import Holder, current_holder

from .bound import Bound
from .forked import end_process
from .workqueue import WorkQueue

P = ParamSpec("P")
R = TypeVar("R")


def begin_worker(
    queue: WorkQueue, initializer: Callable[..., object] | None, initargs: Sequence[Any]
) -> None:
    """Make the calling thread a worker, then run the user's initializer in it."""
    holder = current_holder()
    # The standard class names its threads «prefix_number».
    holder.executor = holder.thread_name.rpartition("_")[0]
    guard.arm(holder)
    worker = queue.work.add_worker(holder)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException:
            # Referred to by the error's traceback, and so there when the standard class breaks it.
            executor = queue.executor()
            if executor is None and holder.executor is not None:
                queue.fail_pending()
            raise
        finally:
            if holder.executor is None:
                end_process(sys.exc_info()[1])
    worker.end_item()
    context.begin_worker(holder)


class Queue(Protocol):
    """What a worker's queue does at the beginning and the end of a task."""

    bound: Bound | None

    def begin(self, holder: Holder) -> None: ...

    def settle(self, holder: Holder, *, interrupted: bool = False) -> None: ...


def run_task(
    queue: Queue,
    inherited: contextvars.Context | None,
    named: Callable[..., object],
    fn: Callable[P, R],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Run one task in the calling worker, and let go of what it opened before it resolves.

    Args:
        inherited: its submitter's context; None: what the initializer left.
        named: the task's function, whose name is logged.
        fn: the function to call: `named`, or a wrapper of it.
    """
    holder = current_holder()
    if holder.entries or holder.caches:
        queue.begin(holder)
    holder.task = named
    worker = holder.worker
    began = monotonic()
    worker.queue_seconds += began - worker.item.future.queued_at
    worker.begun += 1
    if (bound := queue.bound) is not None:
        bound.give_back(worker.item.future)
    interrupted = failed = True
    task_context = holder.context.copy() if inherited is None else inherited
    try:
        result = task_context.run(context.run, holder, fn, args, kwargs)
    except Exception:
        interrupted = False
        raise
    else:
        interrupted = failed = False
        return result
    finally:
        # The error's traceback has this frame, and whoever keeps the error would keep the request.
        del inherited, task_context
        if holder.executor is None:  # a forked child
            end_process(sys.exc_info()[1])
        if holder.entries or holder.caches:
            queue.settle(holder, interrupted=interrupted)
        holder.task = None
        if holder.scopes:
            holder.scopes.clear()
        worker.run_seconds += monotonic() - began
        if failed:
            worker.item.future.failed_fn = named
            worker.failed += 1
        else:
            worker.completed += 1


class AroundTasks(threading.local):
    """Puts `run_task` around each work item that a pool's `submit` queues. Refers to no pool.

    `run_task` is the outermost wrapper, so the context variables that a replaced `submit` has its
    wrapper set are set in the task's context.
    """

    def __init__(self, inherit_context: bool) -> None:
        self._inherit_context = inherit_context
        #: What the calling thread submits now: the task's function, and the context for it.
        self.call: tuple[Callable[..., object], contextvars.Context | None] | None = None

    def __call__(self, queue: Queue, item: Any) -> None:
        # Private names of the standard class's: up to Python 3.13, and after.
        is_newer = not hasattr(item, "fn")
        fn, args, kwargs = item.task if is_newer else (item.fn, item.args, item.kwargs)
        call, self.call = self.call, None
        if call is not None:
            named, inherited = call
        else:  # a replaced `submit` submits more than the task, or goes on in another thread
            named, inherited = fn, context.inherit() if self._inherit_context else None
        args = (queue, inherited, named, fn, *args)
        if is_newer:
            item.task = run_task, args, kwargs
        else:
            item.fn, item.args = run_task, args
