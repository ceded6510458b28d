"""A task's life.

submit ──► queue ──► run ──► release ──► resolve ──► callbacks ──► release ──► wait
(caller)             └───────────────────── (worker) ──────────────────────────┘

submit      the standard `submit`, given `run_task` with the task's function in front, so that
            whatever wraps the standard class (tracing, error reporting) sees each task
run         the task's function, called with its arguments
release     what the task opened is closed, however it ended: before anybody hears of its end
resolve     the future gets the result or the exception
callbacks   done-callbacks run in the worker too, and may use the ORM; so may an initializer
            before the first task: hence the second release, where the worker waits for work
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from django_executors.lifecycle import guard
from django_executors.lifecycle.ledger import current_holder
from django_executors.lifecycle.release import release

P = ParamSpec("P")
R = TypeVar("R")


def begin_worker(initializer: Callable[..., object] | None, initargs: Sequence[Any]) -> None:
    """Make the calling thread a worker, then run the user's initializer in it."""
    holder = current_holder()
    # The standard class names its threads «prefix_number».
    holder.executor = holder.thread_name.rpartition("_")[0]
    guard.arm(holder)
    if initializer is not None:
        initializer(*initargs)


def run_task(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one task in the calling worker, and let go of what it opened before it resolves."""
    holder = current_holder()
    release(holder)  # what the callbacks of the task before left, where more work was queued
    holder.task, holder.unit = fn, 0
    interrupted = True
    try:
        result = fn(*args, **kwargs)
    except Exception:
        interrupted = False
        raise
    else:
        interrupted = False
        return result
    finally:
        release(holder, interrupted=interrupted)
        holder.task = holder.unit = None
