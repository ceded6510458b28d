"""Where workers wait: the one place that leans on how the standard pool is built.

`concurrent.futures.ThreadPoolExecutor` keeps its tasks in the private attribute `_work_queue`, a
`queue.SimpleQueue`, on every Python from 3.11 on. `ThreadPoolExecutor` here puts this subclass in
its place, for two moments that no public hook reaches:

- `get(block=True)`: a worker waits. Done-callbacks run after the task's own wrapper has returned, an
  initializer before the first one; what they opened is released here.
- `put(item)`: a work item is queued, still unseen by any worker. A future that needs a class of its
  own gets it here, by `item.future.__class__`: after `submit` has returned would be a race.
"""

from __future__ import annotations

import queue
from typing import Any

from django_executors.lifecycle.ledger import current_holder
from django_executors.lifecycle.release import release


class WorkQueue(queue.SimpleQueue[Any]):
    """A pool's queue, whose workers hold no connection while they wait."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        # Only a worker asks for work in this way, and only between two tasks: whoever drains the
        # queue (shutdown, a failed initializer) calls get_nowait, from any thread at all.
        release(current_holder())
        return super().get(block, timeout)
