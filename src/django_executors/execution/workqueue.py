"""Where workers wait: the one place that leans on how the standard pool is built.

`concurrent.futures.ThreadPoolExecutor` keeps its tasks in the private attribute `_work_queue`, a
`queue.SimpleQueue`, on every Python from 3.11 on. `ThreadPoolExecutor` here puts this subclass in
its place, for the moments that no public hook reaches:

- `get(block=True)`: a worker waits. Done-callbacks run after the task's own wrapper has returned, an
  initializer before the first one; what they opened is let go here.
- `put(item)`: a work item is queued, still unseen by any worker. It is wrapped in `run_task` here, after
  a replaced `submit`, such as a tracer's, has wrapped the task's function. Its future gets its own class
  here, by `item.future.__class__`: after `submit` has returned would be a race. And the bound on the
  queue holds here: under the pool's lock, after `submit` has looked whether the pool takes tasks.

A shutdown with a deadline takes items out of it, as the standard `shutdown(cancel_futures=True)` does.
`workers_of` reads the pool's threads; the interpreter's end wakes up and joins those in
`_threads_queues`.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from django_executors.lifecycle.holder import Holder, current_holder
from django_executors.lifecycle.naming import task_name
from django_executors.lifecycle.release import has_to_let_go, is_limited, kept_until, release

from .forked import end_process
from .futures import TaskFuture, give_up
from .work import Initializer, Work

#: Queued to have a waiting worker let go of what it keeps. Never leaves this module.
_LET_GO = object()
#: For how many seconds a worker that has let go leaves the queue to the others: longer than `drain`
#: pauses.
_OTHERS_TURN = 0.01

_take = queue.SimpleQueue.get
_put = queue.SimpleQueue.put


def workers_of(executor: concurrent.futures.ThreadPoolExecutor) -> list[threading.Thread]:
    """Return the threads of a pool that refuses tasks, and so starts no more of them."""
    return list(executor._threads)


class WorkQueue(queue.SimpleQueue[Any]):
    """A pool's queue. Workers that wait at it hold no connection, but for `conn_max_idle` seconds."""

    def __init__(
        self, work: Work, put_around: Callable[[WorkQueue, Any], None], conn_max_idle: float
    ) -> None:
        self.work = work
        self._put_around = put_around
        self.bound = work.bound
        #: Return the pool, if somebody refers to it.
        self.executor: Callable[[], Any] = lambda: None
        self._conn_max_idle = conn_max_idle
        # What is queued and is no work: the standard pool queues None to wake workers up. A deque
        # counts without a lock: one may be queued by a weak reference's callback, at any allocation.
        self._markers: deque[None] = deque()
        self._lock = threading.Lock()
        self._keepers: set[Holder] = set()  # guarded by _lock

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is None or item is _LET_GO:
            self._markers.append(None)
        else:
            work = self.work
            if work.bound is not None:
                work.bound.check()
            self._put_around(self, item)
            future = item.future
            future.__class__ = TaskFuture
            future.work = work
            future.queued_at = time.monotonic()
            work.submitted += 1
            try:
                if work.bound is not None:
                    work.bound.take(future)
                work.items.add(item)
                _put(self, item)
            except BaseException:  # of a signal's handler: nobody gets the future
                if future.cancel():
                    work.items.discard(item)
                raise
            return
        super().put(item)  # no name of this module: the interpreter may have cleared them as it exits

    def get_nowait(self) -> Any:
        # A worker may ask in this way between two tasks (Python 3.12 and newer). Whoever empties the
        # queue, to cancel what is in it, does too: in any thread, a task, a callback, an initializer.
        holder = current_holder()
        while (item := _take(self, False)) is _LET_GO:
            self._markers.pop()
        self._count(item, holder)
        return item

    def fail_pending(self) -> None:
        """An initializer has failed, and nobody refers to the pool: the standard class does nothing."""
        error = concurrent.futures.thread.BrokenThreadPool("an initializer has failed")
        with contextlib.suppress(queue.Empty):
            while True:
                if (item := self.get_nowait()) is not None:
                    item.future.set_exception(error)
                del item
        self.put(None)  # by that the other workers are to end

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
            # Before Python 3.13, each of them may wake up the same worker.
            threading.Event().wait(_OTHERS_TURN)
            item = self._wait(holder)
        holder.worker.take(item)
        if item is None:
            self._markers.pop()
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
        self.work.end_dead_workers()
        workers = [holder for worker in self.work.workers if (holder := worker.holder()) is not None]
        executor = next((worker.executor for worker in workers), None)
        if self.work.items:
            running = [task for worker in workers if (task := worker.task) is not None]
            pending = max(0, self.qsize() - len(self._markers))
            busy = sum(worker.item is not None for worker in self.work.workers)
            names = ", ".join(map(task_name, running))
            if not names and busy:
                names = "a callback or an initializer"
            return f"executor={executor} busy={busy} pending={pending} tasks={names}"
        if any(map(has_to_let_go, workers)):
            for _ in workers:
                self.put(_LET_GO)
            return f"executor={executor} keeps connections"
        return None

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
                    cancelled[self.work.name_of(item)] += 1
                if future.cancel():
                    future.set_running_or_notify_cancel()  # or `wait` and `as_completed` sleep on
        except queue.Empty:
            pass
        finally:
            self.put(None)  # one that was taken out would have told a waiting worker to end

    def running(self) -> Counter[str]:
        """Count by name what workers have taken and not ended."""
        return self.work.running()

    def retire(self) -> None:
        """In a forked child: the parent's threads are not here, and its work is not done here."""
        self.__class__ = _ParentsQueue
        # The future of a task that has ended is done, and its callbacks may run.
        unfinished = [
            worker.item.future
            for worker in self.work.workers
            if worker.runs_task() and (holder := worker.holder()) is not None and holder.task is not None
        ]
        with contextlib.suppress(queue.Empty):
            while True:
                if (item := _take(self, False)) is not None and item is not _LET_GO:
                    unfinished.append(item.future)
        for future in unfinished:
            give_up(future)
        # Or this thread, at its end, would join itself.
        threads = getattr(concurrent.futures.thread, "_threads_queues", {})
        threads.pop(threading.current_thread(), None)

    def _wait(self, holder: Holder) -> Any:
        """Wait for the next item, holding connections for as long as that is allowed."""
        holder.worker.end_item()
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
        worker = holder.worker
        if item is None:
            self._markers.pop()
        if (
            worker is not None
            and worker.is_of(self.work)
            and holder.task is None
            and type(worker.item) is not Initializer  # which has failed
        ):
            worker.take(item)
        elif item is not None:
            item.future.failed_fn = self.work.fn_of(item)
            self.work.items.discard(item)  # it was taken to be cancelled


class _ParentsQueue(WorkQueue):
    """What a queue of the parent's is in a forked child: there, no thread waits at it."""

    def get_nowait(self) -> Any:
        end_process(None)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        end_process(None)
