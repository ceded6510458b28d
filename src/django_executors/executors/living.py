"""The executors of this process, for those who have to wait until all of them are idle."""

from __future__ import annotations

import os
import weakref

from .workqueue import WorkQueue

_queues: dict[int, weakref.ref[WorkQueue]] = {}


def add(queue: WorkQueue) -> None:
    """Follow this executor, by its queue: workers may outlive an executor that nobody shut down."""
    key = id(queue)
    _queues[key] = weakref.ref(queue, lambda _: _queues.pop(key, None))


def unfinished() -> list[str]:
    """Say of each executor that is not idle what it still does.

    Idle workers that keep a connection for `conn_max_idle` seconds are told to let go of it.
    """
    found = (queue for reference in _queues.copy().values() if (queue := reference()) is not None)
    return [left for queue in found if (left := queue.unfinished()) is not None]


def _after_fork_in_child() -> None:
    for reference in _queues.copy().values():
        if (queue := reference()) is not None:
            queue.forget_workers()


os.register_at_fork(after_in_child=_after_fork_in_child)
