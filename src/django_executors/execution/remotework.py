"""What an executor has to do whose tasks run in other processes, and its numbers."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from typing import Any

from django_executors.lifecycle.naming import task_name

from .futures import give_up
from .remotefuture import RemoteFuture
from .stats import Tally
from .work import Work


def check_may_start_processes() -> None:
    """Raise what `multiprocessing` would, an `AssertionError`, with a way out.

    Raises:
        RuntimeError: the calling process is daemonic.
    """
    if multiprocessing.current_process().daemon:
        raise RuntimeError(
            "this process is daemonic, and so may not start others, as the workers of `manage.py test "
            "--parallel`, multiprocessing.Pool and Dask are. In tests use "
            "django_executors.testing.run_inline, or --parallel=1; elsewhere a ThreadPoolExecutor"
        )


class RemoteWork(Work):
    """What is to be done in other processes. `items` are the futures of what has not ended."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        #: The threads in which callbacks run now.
        self.settling: set[int] = set()
        self._remote = Tally()  # guarded by _lock

    def is_settling(self) -> bool:
        """Say whether the calling thread is the one that settles the futures, in a callback."""
        return threading.get_ident() in self.settling

    def note_submitted(self, future: RemoteFuture[Any]) -> None:
        self.items.add(future)
        with self._lock:
            self.submitted += 1

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
        self.note_done(future)

    def note_done(self, future: Any) -> None:
        """It has its outcome, and its callbacks have run."""
        self.items.discard(future)

    def _tallies(self) -> list[Tally]:
        return [self._elsewhere, self._remote]

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
