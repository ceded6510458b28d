"""Between a process pool and its workers: the one place that leans on how the standard pool is built.

`concurrent.futures.ProcessPoolExecutor` has, on every Python from 3.11 on, these private attributes, and
`ProcessPoolExecutor` here puts a subclass in the place of each:

- `_work_ids`, a `queue.Queue`: `submit` puts each task's number there, when `_pending_work_items` has
  its item. Its future gets its own class here, unseen by any other thread.
- `_call_queue`, a `multiprocessing.Queue`, in which the manager thread puts a few tasks more than there
  are workers. In a worker, `get` is called between two tasks: what it keeps is let go here, before it
  waits. In the parent, `_on_queue_feeder_error` gets what could not be pickled.
- `_result_queue`, a `multiprocessing.SimpleQueue`, in which a worker puts each task's outcome.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
from concurrent.futures import process
from typing import TYPE_CHECKING, Any

from django_executors.lifecycle.counting import SharedCounts
from django_executors.lifecycle.holder import Holder, current_holder
from django_executors.lifecycle.release import release

from .bound import Bound
from .remotefuture import RemoteFuture

if TYPE_CHECKING:
    from .processwork import ProcessWork

#: For how long a worker that keeps connections tries to get a task that is queued: another may get it.
_PAUSE = 0.001


class WorkIds(queue.Queue[int]):
    """The numbers of the tasks that are not yet in the call queue."""

    def __init__(self, work: ProcessWork, items: dict[int, Any]) -> None:
        super().__init__()
        self._work = work
        self._items = items

    def put(self, item: int, block: bool = True, timeout: float | None = None) -> None:
        work_item = self._items[item]
        future = work_item.future
        future.__class__ = RemoteFuture
        _, future.queued_at, call = work_item.args  # those of `child.run`
        future.failed_fn = call.fn
        future.work = self._work
        self._work.note_submitted(future)
        super().put(item, block, timeout)


class CallQueue(process._SafeQueue):
    """The tasks that workers take. One that waits at it holds no connection."""

    #: Nothing bounds it: the standard pool does that.
    bound: Bound | None = None
    #: How many workers keep connections for a task that is queued; shared by all processes.
    keepers: Any
    #: How many tasks workers have taken; shared, and guarded by the lock of `keepers`.
    taken: Any
    #: How many were submitted for them, whether they are here yet or not; shared, and written by the
    #: parent alone: by a lock that it shared with workers, one that is killed could stop it.
    announced: Any
    _announcing: Any
    #: How often workers opened, kept and closed connections.
    counts: SharedCounts

    @classmethod
    def take_over(cls, standard: Any, context: Any) -> CallQueue:
        """Make a queue of ours of the standard one."""
        standard.__class__ = cls
        standard.keepers = context.Value("i", 0)
        standard.taken = context.RawValue("q", 0)
        standard.announced = context.RawValue("q", 0)
        standard.counts = SharedCounts(context)
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        standard._announcing = threading.RLock()
        ours: CallQueue = standard
        return ours

    def __getstate__(self) -> Any:
        return super().__getstate__(), self.keepers, self.taken, self.announced, self.counts

    def __setstate__(self, state: Any) -> None:
        standard, self.keepers, self.taken, self.announced, self.counts = state
        super().__setstate__(standard)

    def announce(self, tasks: int) -> None:
        """In the parent: so many tasks more are to come, or, where it is below 0, will not come."""
        with self._announcing:
            self.announced.value += tasks

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        # Only a worker asks for work in this way, and only between two tasks.
        holder = current_holder()
        if holder.entries or holder.caches:
            self.settle(holder)
        item = self._take(holder)
        if item is None:  # the worker is to end
            self._let_go(holder)
        else:
            with self.keepers.get_lock():
                self.taken.value += 1
        return item

    def _take(self, holder: Holder) -> Any:
        while (holder.entries or holder.caches) and self._queued():
            with contextlib.suppress(queue.Empty):
                return super().get(timeout=_PAUSE)
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                break
        self._let_go(holder)
        return super().get()

    def begin(self, holder: Holder) -> None:
        """A worker has taken a task."""
        release(holder, keep=True)
        self._unreserve(holder)

    def settle(self, holder: Holder, *, interrupted: bool = False) -> None:
        """Between two tasks: keep what this worker holds if there is work for it, or let go."""
        worker = holder.worker
        self._unreserve(holder)
        with self.keepers.get_lock():
            worker.keeps = not worker.is_to_end() and self._queued() > self.keepers.value
            if worker.keeps:
                self.keepers.value += 1
        release(holder, keep=worker.keeps, interrupted=interrupted)
        if not (holder.entries or holder.caches):
            self._unreserve(holder)

    def _let_go(self, holder: Holder) -> None:
        self._unreserve(holder)
        release(holder)

    def _unreserve(self, holder: Holder) -> None:
        if holder.worker.keeps:
            with self.keepers.get_lock():
                self.keepers.value -= 1
            holder.worker.keeps = False

    def _queued(self) -> int:
        return int(self.announced.value - self.taken.value)

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        if isinstance(obj, process._CallItem):
            self.announce(-1)
        super()._on_queue_feeder_error(e, obj)
