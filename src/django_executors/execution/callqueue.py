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
from collections import Counter
from concurrent.futures import process
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from django_executors.connections.ledger import ConnectionCounts, Holder, current_holder
from django_executors.connections.release import settle

from .remotefuture import RemoteFuture

if TYPE_CHECKING:
    from .processwork import ProcessWork

#: For how long a worker that keeps connections tries to get a task that is queued: another may get it.
_PAUSE = 0.001


class SharedCounts(ConnectionCounts):
    """The same for worker processes, which add, and their parent, which reads.

    The parent takes no lock that they take: one of them may be killed while it has it.
    """

    _NAMES = ("opened", "reset", "reused", "closed", "close_failures")

    def __init__(self, context: BaseContext) -> None:
        self._shared_lock = context.RLock()
        self._shared: Any = context.RawArray("q", len(self._NAMES))

    def add(self, what: str) -> None:
        with self._shared_lock:
            self._shared[self._NAMES.index(what)] += 1

    def read(self) -> Counter[str]:
        return Counter(dict(zip(self._NAMES, self._shared, strict=True)))


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
        future.fn = work_item.args[2].fn  # those of `child.run`
        future.work = self._work
        self._work.note_submitted(future)
        super().put(item, block, timeout)


class CallQueue(process._SafeQueue):
    """The tasks that workers take. One that waits at it holds no connection."""

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

    #: In a worker: whether it is one of the keepers, and whether it has begun its last task.
    keeps = False
    is_to_end = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        # Only a worker asks for work in this way, and only between two tasks.
        holder = current_holder()
        if holder.is_holding:
            self.settle(holder)
        item = self._take(holder)
        if item is None:  # the worker is to end
            self._let_go(holder)
        else:
            with self.keepers.get_lock():
                self.taken.value += 1
            self._unreserve()
        return item

    def _take(self, holder: Holder) -> Any:
        while holder.is_holding and self._queued():
            with contextlib.suppress(queue.Empty):
                return super().get(timeout=_PAUSE)
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                break
        self._let_go(holder)
        return super().get()

    def settle(self, holder: Holder, *, interrupted: bool = False) -> None:
        """Between two tasks: keep what this worker holds if there is work for it, or let go."""
        self._unreserve()
        with self.keepers.get_lock():
            self.keeps = not self.is_to_end and self._queued() > self.keepers.value
            if self.keeps:
                self.keepers.value += 1
        settle(holder, keep=self.keeps, interrupted=interrupted)
        if not holder.is_holding:
            self._unreserve()

    def _let_go(self, holder: Holder) -> None:
        self._unreserve()
        settle(holder)

    def _unreserve(self) -> None:
        if self.keeps:
            with self.keepers.get_lock():
                self.keepers.value -= 1
            self.keeps = False

    def _queued(self) -> int:
        return int(self.announced.value - self.taken.value)

    def _on_queue_feeder_error(self, e: Exception, obj: Any) -> None:
        if isinstance(obj, process._CallItem):
            self.announce(-1)
        super()._on_queue_feeder_error(e, obj)
