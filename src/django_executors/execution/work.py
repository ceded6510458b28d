"""What a pool has to do, what each of its workers does, and the numbers of both."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django_executors.exceptions import QueueFull
from django_executors.lifecycle.counting import ConnectionCounts
from django_executors.lifecycle.holder import Holder, current_holder
from django_executors.lifecycle.naming import task_name

from .bound import Bound, runs_event_loop
from .stats import ExecutorStats, Tally
from .waits import Waits

if TYPE_CHECKING:
    from .futures import Broken


class Initializer:
    """What a worker does before its first task."""


class Worker(Tally):
    """One thread of a pool, and what it does. Refers to nothing that refers to it."""

    __slots__ = ("_holder", "_items", "_thread", "item")

    def __init__(self, work: Work, holder: Holder) -> None:
        super().__init__()
        self._items = work.items
        self._holder = weakref.ref(holder)
        self._thread = weakref.ref(threading.current_thread())
        #: The work item that it has taken and is not done with.
        self.item: Any = Initializer()

    def is_of(self, work: Work) -> bool:
        return self._items is work.items

    def holder(self) -> Holder | None:
        """Return what its thread holds; None if that has ended and left nothing."""
        return self._holder()

    def has_ended(self) -> bool:
        """Tell whether its thread has ended."""
        thread = self._thread()
        return thread is None or not is_alive(thread)

    def runs_task(self) -> bool:
        return self.item is not None and not isinstance(self.item, Initializer)

    def take(self, item: Any) -> None:
        """It has no more to do with what it did last, a task and its callbacks, but with this item."""
        done, self.item = self.item, item
        self._items.discard(done)  # it may have done nothing

    def end_item(self) -> None:
        """It has nothing to do any more: no initializer, no task and no callbacks."""
        self.take(None)


def is_alive(thread: threading.Thread) -> bool:
    """Say whether this thread has not ended.

    On Python 3.11 and 3.12, one whose `join` was interrupted, as by Ctrl-C, says of itself that it has.
    """
    return thread.is_alive() or thread in threading.enumerate()


class Work:
    """What a pool has to do."""

    def __init__(self, bound: Bound | None = None) -> None:
        self.bound = bound
        #: The most workers at once.
        self.max_workers = 0
        #: What has not ended: work items, with their callbacks, and initializers.
        self.items: set[Any] = set()
        self.workers: list[Worker] = []
        self.waits = Waits()
        self.connections = ConnectionCounts()
        #: What tells of tasks that failed since the executor broke, as long as there is any.
        self.broken: Callable[[], Broken | None] = lambda: None
        #: Written by `submit`, under the pool's own lock.
        self.submitted = 0
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        self._lock = threading.RLock()
        self._cancelled = self._rejected = 0  # guarded by _lock
        #: Of tasks that ran in their callers' threads, or not at all.
        self._elsewhere = Tally()  # guarded by _lock
        self._callers = 0  # guarded by _lock

    def add_worker(self, holder: Holder) -> Worker:
        """The calling thread is a worker, busy with its initializer until it asks for work."""
        worker = Worker(self, holder)
        holder.worker = worker
        holder.counts = self.connections
        self.items.add(worker.item)
        self.workers.append(worker)
        return worker

    def is_mine(self) -> bool:
        """Say whether the calling thread is one of the workers."""
        worker = current_holder().worker
        return isinstance(worker, Worker) and worker.is_of(self)

    def wait_for_room(self) -> None:
        """Return when it is worth another try to submit.

        Raises:
            QueueFull: waiting is not wanted, or could never end.
        """
        assert self.bound is not None
        why = None
        if not self.bound.blocks:
            why = "when_full='raise'"
        elif self.is_mine():
            why = "a worker of its own would wait for itself"
        elif runs_event_loop():
            why = "waiting would block the event loop that runs in this thread"
        if why is None:
            self.bound.wait()
            return
        with self._lock:
            self._rejected += 1
        stats = self.stats()
        raise QueueFull(
            f"the queue is full, and {why}: workers={stats.workers} busy={stats.busy} "
            f"pending={stats.pending}"
        )

    def note_cancelled(self, future: Any) -> None:
        """A task that had not begun was cancelled."""
        with self._lock:
            self._cancelled += 1
        if self.bound is not None:
            self.bound.give_back(future)

    def note_broken(self, future: Any) -> None:
        """A task fails that did not run, since an initializer has failed."""
        with self._lock:
            self._elsewhere.begun += 1
            self._elsewhere.failed += 1
        if self.bound is not None:
            self.bound.give_back(future)

    def begin_in_caller(self) -> float:
        """A task begins in its caller's thread, as it is submitted."""
        with self._lock:
            self.submitted += 1
            self._callers += 1
            self._elsewhere.begun += 1
        return time.monotonic()

    def end_in_caller(self, began: float, *, failed: bool) -> None:
        with self._lock:
            self._callers -= 1
            self._elsewhere.run_seconds += time.monotonic() - began
            if failed:
                self._elsewhere.failed += 1
            else:
                self._elsewhere.completed += 1

    def stats(self) -> ExecutorStats:
        """Return all numbers as they were at one moment.

        Workers count without a lock. Each number only grows, so two readings that are equal were true
        all the time in between («double collect»: Afek and others, Atomic Snapshots of Shared Memory,
        Journal of the ACM, 1993).
        """
        before = None
        while (found := self._read()) != before:
            before = found
        submitted, cancelled, rejected, callers, tallies, connections = found
        begun, completed, failed, queue_seconds, run_seconds = map(sum, zip(*tallies, strict=True))
        busy = begun - completed - failed
        # A worker that is busy has not ended, whatever its thread says by now.
        workers = max(busy, callers + sum(not worker.has_ended() for worker in self.workers))
        return ExecutorStats(
            workers=workers,
            busy=busy,
            idle=workers - busy,
            pending=submitted - begun - cancelled,
            submitted=submitted,
            completed=completed,
            failed=failed,
            cancelled=cancelled,
            rejected=rejected,
            connections_opened=connections["opened"],
            connections_reset=connections["reset"],
            connections_reused=connections["reused"],
            connections_closed=connections["closed"],
            close_failures=connections["close_failures"],
            queue_seconds=queue_seconds,
            run_seconds=run_seconds,
        )

    def _read(self) -> tuple[Any, ...]:
        with self._lock:
            return (
                self.submitted,
                self._cancelled,
                self._rejected,
                self._callers,
                [tally.read() for tally in self._tallies()],
                self.connections.read(),
            )

    def _tallies(self) -> list[Tally]:
        return [self._elsewhere, *self.workers]

    def end_dead_workers(self) -> None:
        """Count out what initializers and callbacks did that ended their threads."""
        for worker in self.workers:
            if worker.item is not None and worker.has_ended():
                worker.end_item()

    def running(self) -> Counter[str]:
        """Count by name what workers have taken and not ended."""
        self.end_dead_workers()
        found: Counter[str] = Counter()
        for item in self.items.copy():
            if isinstance(item, Initializer):
                found["an initializer"] += 1
            elif not item.future.done():
                found[self.name_of(item)] += 1
            elif item.future._done_callbacks:
                found[f"a callback of {self.name_of(item)}"] += 1
        return found

    def fn_of(self, item: Any) -> Any:
        """Return the task's function that a work item of the standard pool stands for."""
        # Up to Python 3.13, and after.
        fn, args = (item.fn, item.args) if hasattr(item, "fn") else item.task[:2]
        # The arguments of `run_task` begin with the queue.
        return args[2] if args and getattr(args[0], "work", None) is self else fn

    def name_of(self, item: Any) -> str:
        return task_name(self.fn_of(item))

    def name_of_worker(self, worker: Worker) -> str:
        """Return the name of what this worker does."""
        return self.name_of(worker.item) if worker.runs_task() else "an initializer"

    def name_of_future(self, future: Any) -> str:
        """Return the name of a task that has not ended."""
        items = self.items.copy()
        item = next((each for each in items if getattr(each, "future", None) is future), None)
        return "one that has ended" if item is None else self.name_of(item)
