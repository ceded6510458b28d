"""The executors of this process: for those who have to wait until all are idle, and for forks."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Unfinished(Protocol):
    """What is asked of an executor's work, which may outlive it."""

    def unfinished(self) -> str | None:
        """Say what is left to do, or None; have idle workers let go of what they keep."""
        ...

    def retire(self) -> None:
        """In a forked child: it is the parent's."""
        ...


class Living(Protocol):
    """What is asked of an executor here."""

    def _begin_anew(self) -> None:
        """In a forked child: be as it was made, with no threads, no work and free locks."""
        ...

    def shutdown(self) -> None: ...


_executors: dict[int, weakref.ref[Living]] = {}
_queues: dict[int, weakref.ref[Unfinished]] = {}


def add(executor: Living, queue: Unfinished) -> None:
    """Follow this executor, and its queue: workers may outlive an executor that nobody shut down."""
    key, queue_key = id(executor), id(queue)
    _executors[key] = weakref.ref(executor, lambda _: _executors.pop(key, None))
    _queues[queue_key] = weakref.ref(queue, lambda _: _queues.pop(queue_key, None))


def executors() -> list[Living]:
    """Return those that are referred to."""
    found = (reference() for reference in list(_executors.values()))
    return [executor for executor in found if executor is not None]


def unfinished() -> list[str]:
    """Say of each executor that is not idle what it still does.

    Idle workers that keep a connection for `conn_max_idle` seconds are told to let go of it.
    """
    return [left for queue in _found_queues() if (left := queue.unfinished()) is not None]


def _found_queues() -> list[Unfinished]:
    found = (reference() for reference in list(_queues.values()))
    return [queue for queue in found if queue is not None]


def _after_fork_in_child() -> None:
    of_parent = _found_queues()
    _queues.clear()
    for queue in of_parent:
        queue.retire()
    for executor in executors():
        executor._begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
