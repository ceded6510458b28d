"""What a process pool has to do, and its numbers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import process
from multiprocessing import forkserver
from typing import Any

from django_executors.base import ExecutorStats

from .callqueue import CallQueue
from .remotefuture import RemoteFuture
from .remotework import RemoteWork


class ProcessWork(RemoteWork):
    """What a process pool has to do."""

    def __init__(self, name: str, calls: CallQueue) -> None:
        super().__init__(name)
        self.calls = calls
        self.connections = calls.counts
        #: The worker processes by pid, the standard pool's own book; and the thread that keeps it.
        self.processes: Mapping[int, Any] = {}
        self.manager: Callable[[], threading.Thread | None] = lambda: None
        #: Return the pool, if it replaces its processes.
        self.replacing: Callable[[], object] | None = None
        #: That pool, as long as there are tasks: without it, nobody would replace one.
        self._kept: object = None  # guarded by lock

    def note_submitted(self, future: RemoteFuture[Any]) -> None:
        with self.lock:
            super().note_submitted(future)
            if self.replacing is not None:
                self._kept = self.replacing()
        self.calls.announce(1)

    def note_done(self, future: Any) -> None:
        kept = None
        with self.lock:
            super().note_done(future)
            if self.replacing is not None and not self.items:
                kept, self._kept = self._kept, None
        del kept  # not under the lock: it may be the last reference

    def note_cancelled(self, future: Any) -> None:
        super().note_cancelled(future)
        self.calls.announce(-1)

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

    def retire(self) -> None:
        super().retire()
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
