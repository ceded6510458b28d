"""Where workers wait: the one place that leans on how the standard pool is built.

`concurrent.futures.ThreadPoolExecutor` keeps its tasks in the private attribute `_work_queue`, a
`queue.SimpleQueue`, on every Python from 3.11 on. `ThreadPoolExecutor` here puts this subclass in
its place, for the moments that no public hook reaches:

- `get(block=True)`: a worker waits. Done-callbacks run after the task's own wrapper has returned, an
  initializer before the first one; what they opened is let go here.
- `put(item)`: a work item is queued, still unseen by any worker. A future that needs a class of its
  own gets it here, by `item.future.__class__`: after `submit` has returned would be a race.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import Any

from django_executors.lifecycle.ledger import Holder, current_holder
from django_executors.lifecycle.release import kept_until, release


class WorkQueue(queue.SimpleQueue[Any]):
    """A pool's queue. Workers that wait at it hold no connection, but for `conn_max_idle` seconds."""

    def __init__(self, conn_max_idle: float = 0.0) -> None:
        self._conn_max_idle = conn_max_idle
        # The standard pool queues None to wake workers up. Such a marker is no work. A deque counts
        # them without a lock: one may be queued by a weak reference's callback, at any allocation.
        self._markers: deque[None] = deque()
        self._lock = threading.Lock()
        self._keepers: set[Holder] = set()  # guarded by _lock

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None:
            self._markers.append(None)
        super().put(item)

    def get_nowait(self) -> Any:
        return self._taken(super().get_nowait())

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        # Only a worker asks for work in this way, and only between two tasks: whoever drains the
        # queue (shutdown, a failed initializer) calls get_nowait, from any thread at all.
        holder = current_holder()
        if not holder.entries:
            return self._taken(super().get(block, timeout))
        self.settle(holder)
        item = self._next_or_wait(holder)
        if item is None:
            release(holder)
        return self._taken(item)

    def settle(self, holder: Holder, *, interrupted: bool = False) -> None:
        """Between two tasks: keep what this worker holds if there is work for it, or let go.

        A worker keeps only while more tasks are queued than workers keep: of eight that end together
        with three tasks queued, three keep.
        """
        if not holder.entries:
            return
        with self._lock:
            self._keepers.discard(holder)
            reserved = self.qsize() - len(self._markers) > len(self._keepers)
            if reserved:
                self._keepers.add(holder)
        release(holder, keep=reserved or self._conn_max_idle > 0, interrupted=interrupted)
        if not holder.entries:
            self.unreserve(holder)

    def begin(self, holder: Holder) -> None:
        """A worker has taken a task."""
        if holder.entries:
            # Callbacks of the task before may have used the ORM since it ended.
            release(holder, keep=True)
            self.unreserve(holder)

    def unreserve(self, holder: Holder) -> None:
        """Count this worker no more among those that keep for a queued task."""
        if holder in self._keepers:
            with self._lock:
                self._keepers.discard(holder)

    def _next_or_wait(self, holder: Holder) -> Any:
        """Take the next task, or wait for one, holding connections for as long as that is allowed."""
        with contextlib.suppress(queue.Empty):
            return super().get_nowait()
        self.unreserve(holder)
        until = kept_until(holder, self._conn_max_idle)
        while until is not None and (timeout := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return super().get(timeout=min(timeout, threading.TIMEOUT_MAX))
        release(holder)
        return super().get()

    def _taken(self, item: Any) -> Any:
        if item is None:
            self._markers.pop()
        return item
