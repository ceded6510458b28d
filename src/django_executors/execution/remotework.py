"""What an executor has to do whose tasks run in other processes, and its numbers."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from django_executors.base import Books, log_left
from django_executors.clock import Clock
from django_executors.naming import task_name

from .remotefuture import RemoteFuture

_PAUSE = 0.005


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


def is_alive(thread: threading.Thread) -> bool:
    """Say whether this thread has not ended.

    On Python 3.11 and 3.12, one whose `join` was interrupted, as by Ctrl-C, says of itself that it has.
    """
    return thread.is_alive() or thread in threading.enumerate()


class RemoteWork(Books):
    """What is to be done in other processes. `items` are the futures of what has not ended."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.items: set[Any] = set()
        #: The threads in which callbacks run now.
        self.settling: set[int] = set()
        self._submitted = 0  # guarded by lock

    @property
    def pending(self) -> int:
        return self._submitted - self.begun - self.cancelled

    def begin_in_caller(self) -> float:
        with self.lock:
            self._submitted += 1
            return super().begin_in_caller()

    def is_settling(self) -> bool:
        """Say whether the calling thread is the one that settles the futures, in a callback."""
        return threading.get_ident() in self.settling

    def note_submitted(self, future: RemoteFuture[Any]) -> None:
        with self.lock:
            self.items.add(future)
            self._submitted += 1

    def note_begun(self) -> None:
        with self.lock:
            self.begun += 1

    def note_ended(self, failed: bool, queue_seconds: float = 0.0, run_seconds: float = 0.0) -> None:
        """A task has ended; its worker told for how long tasks have been queued, and have run."""
        with self.lock:
            self.queue_seconds += queue_seconds
            self.task_ended(run_seconds, failed)

    def note_cancelled(self, future: Any) -> None:
        self.task_cancelled()
        self.note_done(future)

    def note_done(self, future: Any) -> None:
        """It has its outcome, and its callbacks have run."""
        with self.lock:
            self.items.discard(future)

    def running(self) -> Counter[str]:
        """Count by name what was handed to a worker and has not ended, with its callbacks."""
        return Counter(
            f"a callback of {name}" if future.done() else name
            for future in self.items.copy()
            if (name := task_name(future.fn)) and (future.running() or future.done())
        )

    def cancel_pending(self) -> Counter[str]:
        """Cancel each task that was not handed to a worker, and return their names."""
        cancelled: Counter[str] = Counter()
        for future in self.items.copy():
            name = task_name(future.fn)
            if not future.cancelled() and future.cancel():
                cancelled[name] += 1
        return cancelled

    def end_within(
        self, threads: Sequence[threading.Thread], timeout: float, *, cancel_at_once: bool
    ) -> None:
        """Wait until the threads have ended, at most for that many seconds, and log what they left."""
        deadline = Clock.monotonic() + timeout
        running: Counter[str] = Counter()
        not_run: Counter[str] = self.cancel_pending() if cancel_at_once else Counter()
        try:
            # Not by join(): if a signal's handler raises there, Python 3.11 and 3.12 take that worker
            # for ended, and do not wait for it when they exit.
            pause = threading.Event()
            while any(map(is_alive, threads)) and Clock.monotonic() < deadline:
                pause.wait(_PAUSE)
            not_run += self.cancel_pending()
            running = self.running()
        finally:
            log_left(self.name, timeout, running, not_run)

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
            future.abandon()
        self.items = set()
