"""Where workers wait: the one place that leans on how the standard pool is built.

`concurrent.futures.ThreadPoolExecutor` keeps its tasks in the private attribute `_work_queue`, a
`queue.SimpleQueue`, on every Python from 3.11 on. `ThreadPoolExecutor` here puts this subclass in
its place, for the moments that no public hook reaches:

- `get(block=True)`: a worker waits. Done-callbacks run after the task's own wrapper has returned, an
  initializer before the first one; what they opened is let go here.
- `put(item)`: a work item is queued, still unseen by any worker. A future that needs a class of its
  own gets it here, by `item.future.__class__`: after `submit` has returned would be a race.

A shutdown with a deadline takes items out of it, as the standard `shutdown(cancel_futures=True)` does,
and asks them what they were to run. `workers_of` reads the pool's threads; the interpreter's end wakes
up and joins those in `_threads_queues`.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import Counter, deque
from typing import Any

from django_executors.exceptions import ExecutorError
from django_executors.lifecycle.holder import Holder, current_holder
from django_executors.lifecycle.naming import task_name
from django_executors.lifecycle.release import has_to_let_go, is_limited, kept_until, release

from .forked import end_process

#: Queued to have a waiting worker let go of what it keeps. Never leaves this module.
_LET_GO = object()

_take = queue.SimpleQueue.get


def workers_of(executor: concurrent.futures.ThreadPoolExecutor) -> list[threading.Thread]:
    """Return the threads of a pool that refuses tasks, and so starts no more of them."""
    return list(executor._threads)


def is_alive(worker: threading.Thread) -> bool:
    """Say whether this thread has not ended.

    On Python 3.11 and 3.12, one whose `join` was interrupted, as by Ctrl-C, says of itself that it has.
    """
    return worker.is_alive() or worker in threading.enumerate()


class WorkQueue(queue.SimpleQueue[Any]):
    """A pool's queue. Workers that wait at it hold no connection, but for `conn_max_idle` seconds."""

    def __init__(self, conn_max_idle: float = 0.0) -> None:
        self._conn_max_idle = conn_max_idle
        # What is queued and is no work: the standard pool queues None to wake workers up. A deque
        # counts without a lock: one may be queued by a weak reference's callback, at any allocation.
        self._markers: deque[None] = deque()
        #: What has not ended: work items, with their callbacks, and workers in their initializers.
        self._tasks: set[Any] = set()
        #: Which of these each worker does.
        self._busy: dict[Holder, Any] = {}
        self._workers: dict[Holder, weakref.ref[threading.Thread]] = {}
        self._lock = threading.Lock()
        self._keepers: set[Holder] = set()  # guarded by _lock

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None or item is _LET_GO:
            self._markers.append(None)
        else:
            self._tasks.add(item)
        super().put(item)

    def add_worker(self, holder: Holder) -> None:
        """The calling thread is a worker, busy with its initializer until it asks for work."""
        self._workers[holder] = weakref.ref(threading.current_thread())
        self._tasks.add(holder)
        self._busy[holder] = holder

    def end_task(self, holder: Holder) -> None:
        """This worker has no more to do with what it did last: its initializer, or a task."""
        # It may have done nothing, or another thread may have seen too that the worker is dead.
        self._tasks.discard(self._busy.pop(holder, None))

    def get_nowait(self) -> Any:
        # A worker may ask in this way between two tasks (Python 3.12 and newer). Whoever empties the
        # queue, to cancel what is in it, does too: in any thread, a task, a callback, an initializer.
        holder = current_holder()
        while (item := _take(self, False)) is _LET_GO:
            self._markers.pop()
        self._count(item, holder)
        return item

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        # Only a worker asks for work in this way, and only between two tasks.
        holder = current_holder()
        if holder.entries or holder.caches:
            self.settle(holder)
        try:
            item = _take(self, False)
        except queue.Empty:
            item = self._wait(holder)
        while item is _LET_GO:
            self._markers.pop()
            release(holder)
            item = self._wait(holder)
        self._count(item, holder)
        if item is None:
            self.end_task(holder)
            release(holder)
        return item

    def settle(self, holder: Holder, *, interrupted: bool = False) -> None:
        """Between two tasks: keep what this worker holds if there is work for it, or let go.

        A worker keeps only while more tasks are queued than workers keep: of eight that end together
        with three tasks queued, three keep.
        """
        with self._lock:
            self._keepers.discard(holder)
            reserved = self.qsize() - len(self._markers) > len(self._keepers)
            if reserved:
                self._keepers.add(holder)
        may_idle = self._conn_max_idle > 0 and not is_limited(holder)
        release(holder, keep=reserved or may_idle, interrupted=interrupted)
        if not (holder.entries or holder.caches):
            self.unreserve(holder)

    def begin(self, holder: Holder) -> None:
        """A worker has taken a task."""
        # Callbacks of the task before may have used the ORM since it ended.
        release(holder, keep=True)
        self.unreserve(holder)

    def unreserve(self, holder: Holder) -> None:
        """Count this worker no more among those that keep for a queued task."""
        if holder in self._keepers:
            with self._lock:
                self._keepers.discard(holder)

    def unfinished(self) -> str | None:
        """Say what is left to do, or None; have idle workers let go of what they keep.

        Any thread may call this.
        """
        workers = self._forget_dead_workers()
        executor = next((worker.executor for worker in workers), None)
        if self._tasks:
            running = [task for worker in workers if (task := worker.task) is not None]
            pending = max(0, self.qsize() - len(self._markers))
            names = ", ".join(map(task_name, running))
            if not names and self._busy:
                names = "a callback or an initializer"
            return f"executor={executor} busy={len(self._busy)} pending={pending} tasks={names}"
        if any(map(has_to_let_go, workers)):
            for _ in workers:
                self.put(_LET_GO)
            return f"executor={executor} keeps connections"
        return None

    def is_worker(self) -> bool:
        """Say whether the calling thread is one of the pool's workers."""
        return current_holder() in self._workers

    def cancel_pending(self, cancelled: Counter[str]) -> None:
        """Cancel each task that no worker has taken, and count its name in.

        Callbacks of their futures run in the calling thread, which is none of the workers.
        """
        try:
            while True:
                if (item := self.get_nowait()) is None:
                    continue
                future = item.future
                if not future.cancelled():  # by somebody else
                    cancelled[self._name_of(item)] += 1
                if future.cancel():
                    future.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
        except queue.Empty:
            pass
        finally:
            self.put(None)  # one that was taken out would have told a waiting worker to end

    def running(self) -> Counter[str]:
        """Count by name what workers have taken and not ended."""
        self._forget_dead_workers()
        found: Counter[str] = Counter()
        for item in self._tasks.copy():
            if isinstance(item, Holder):
                found["an initializer"] += 1
            elif not item.future.done():
                found[self._name_of(item)] += 1
            elif item.future._done_callbacks:
                found[f"a callback of {self._name_of(item)}"] += 1
        return found

    def retire(self) -> None:
        """In a forked child: the parent's threads are not here, and its work is not done here."""
        self.__class__ = _ParentsQueue
        # The future of a task that has ended is done, and its callbacks may run.
        unfinished = [item.future for holder, item in self._busy.items() if holder.task is not None]
        with contextlib.suppress(queue.Empty):
            while True:
                if (item := _take(self, False)) is not None and item is not _LET_GO:
                    unfinished.append(item.future)
        for future in unfinished:
            _give_up(future)
        # Or this thread, at its end, would join itself.
        threads = getattr(concurrent.futures.thread, "_threads_queues", {})
        threads.pop(threading.current_thread(), None)

    def _forget_dead_workers(self) -> dict[Holder, weakref.ref[threading.Thread]]:
        """Count out what initializers and callbacks did that ended their threads; return all workers."""
        busy, workers = self._busy.copy(), self._workers.copy()  # in this order: each has a thread
        for holder in busy:
            thread = workers[holder]()
            if thread is None or not is_alive(thread):
                self.end_task(holder)
        return workers

    def _name_of(self, item: Any) -> str:
        """Return the name of the task that a work item of the standard pool stands for."""
        # Up to Python 3.13, and after.
        fn, args = (item.fn, item.args) if hasattr(item, "fn") else item.task[:2]
        # `run_task`, or what somebody has wrapped it in: its arguments begin with this queue.
        return task_name(args[2] if args and args[0] is self else fn)

    def _wait(self, holder: Holder) -> Any:
        """Wait for the next item, holding connections for as long as that is allowed."""
        self.end_task(holder)
        if holder.entries or holder.caches:
            self.unreserve(holder)
            until = kept_until(holder, self._conn_max_idle)
            while until is not None and (timeout := until - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    return _take(self, True, min(timeout, threading.TIMEOUT_MAX))
            release(holder)
        return _take(self)

    def _count(self, item: Any, holder: Holder) -> None:
        """This item is not queued any more."""
        if item is None:
            self._markers.pop()
        elif (
            holder not in self._workers
            or holder.task is not None
            or self._busy.get(holder) is holder  # its initializer has failed
        ):
            self._tasks.discard(item)  # it was taken to be cancelled
        else:
            self.end_task(holder)
            self._busy[holder] = item


class _ParentsQueue(WorkQueue):
    """What a queue of the parent's is in a forked child: there, no thread waits at it."""

    def get_nowait(self) -> Any:
        end_process(None)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        end_process(None)


def _give_up(future: concurrent.futures.Future[Any]) -> None:
    """Make of a forked child's copy of the parent's future one that nobody waits for."""
    # Anew: a thread that is not here may have held its lock, and the callbacks are the parent's.
    concurrent.futures.Future.__init__(future)
    future.set_exception(
        ExecutorError(f"this task belongs to the parent process, which has forked: pid={os.getppid()}")
    )
