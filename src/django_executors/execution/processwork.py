"""What a process pool has to do, and its numbers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import process
from multiprocessing import forkserver
from typing import Any

from django_executors.lifecycle.naming import task_name

from .callqueue import CallQueue
from .futures import give_up
from .processfuture import ProcessFuture
from .stats import ExecutorStats, Tally
from .work import Work


class ProcessWork(Work):
    """What a process pool has to do. `items` are the futures of what has not ended."""

    def __init__(self, name: str, calls: CallQueue) -> None:
        super().__init__()
        self.name = name
        self.calls = calls
        self.connections = calls.counts
        #: The worker processes by pid, the standard pool's own book; and the thread that keeps it.
        self.processes: Mapping[int, Any] = {}
        self.manager: Callable[[], threading.Thread | None] = lambda: None
        #: The threads in which callbacks run now.
        self.settling: set[int] = set()
        self._remote = Tally()  # guarded by _lock

    def is_settling(self) -> bool:
        """Say whether the calling thread is the one that settles the pool's futures, in a callback."""
        return threading.get_ident() in self.settling

    def note_submitted(self, future: ProcessFuture[Any]) -> None:
        self.items.add(future)
        with self._lock:
            self.submitted += 1
        self.calls.announce(1)

    def note_begun(self) -> None:
        with self._lock:
            self._remote.begun += 1

    def note_ended(self, failed: bool, queue_seconds: float = 0.0, run_seconds: float = 0.0) -> None:
        """A task has ended; its worker told for how long tasks have been queued, and have run."""
        remote = self._remote
        with self._lock:
            remote.queue_seconds += queue_seconds
            remote.run_seconds += run_seconds
            if failed:
                remote.failed += 1
            else:
                remote.completed += 1

    def note_cancelled(self, future: Any) -> None:
        super().note_cancelled(future)
        self.calls.announce(-1)
        self.items.discard(future)

    def _tallies(self) -> list[Tally]:
        return [self._elsewhere, self._remote]

    def stats(self) -> ExecutorStats:
        found = super().stats()
        manager = self.manager()
        processes = len(self.processes) if manager is not None and manager.is_alive() else 0
        workers = processes + self._callers
        # Up to so many have been handed over; the others are still in the queue that workers take from.
        busy = min(found.busy, workers)
        return dataclasses.replace(
            found,
            workers=workers,
            busy=busy,
            idle=workers - busy,
            pending=found.pending + found.busy - busy,
        )

    def running(self) -> Counter[str]:
        """Count by name what was handed to a worker and has not ended, with its callbacks."""
        return Counter(
            f"a callback of {name}" if future.done() else name
            for future in self.items.copy()
            if (name := task_name(future.failed_fn)) and (future.running() or future.done())
        )

    def cancel_pending(self, cancelled: Counter[str]) -> None:
        """Cancel each task that was not handed to a worker, and count its name in."""
        for future in self.items.copy():
            name = task_name(future.failed_fn)
            if not future.cancelled() and future.cancel():
                cancelled[name] += 1

    def unfinished(self) -> str | None:
        """Say what is left to do, or None. Any thread may call this."""
        if not self.items:
            return None
        stats = self.stats()
        names = ", ".join(self.running())
        return f"executor={self.name} busy={stats.busy} pending={stats.pending} tasks={names}"

    def retire(self) -> None:
        """In a forked child: the parent's workers are not this process's, nor is their work."""
        for future in self.items:
            # A private name of the standard class's: `done` would wait for a parent's thread.
            if future._state in {"PENDING", "RUNNING"}:
                give_up(future)
        self.items = set()
        if (manager := self.manager()) is not None:
            # Or this process, at its end, would wake up the parent's.
            process._threads_wakeups.pop(manager, None)
        if self.processes:
            # Private names of multiprocessing's: it would wait for them as for children, and ask the
            # parent's server of forks for more of them.
            vars(multiprocessing.process)["_children"].difference_update(self.processes.values())
            _forget_forkserver(vars(forkserver)["_forkserver"])


def _forget_forkserver(server: Any) -> None:
    preload, alive = server._preload_modules, server._forkserver_alive_fd
    if alive is not None:
        os.close(alive)
    server.__init__()
    server._preload_modules = preload
