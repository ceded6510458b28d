"""The end of a pool that has a deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from .work import is_alive
from .workqueue import WorkQueue

logger = logging.getLogger(__name__)

_PAUSE = 0.005

#: The most names in a record.
_NAMED = 10


def end(
    workers: Sequence[threading.Thread], queue: WorkQueue, timeout: float, *, cancel_at_once: bool
) -> None:
    """Wait until the workers have ended, at most for that many seconds, and log what they left.

    A task is cancelled by whoever takes it out of the queue first, here or a worker that runs it, so
    none is both run and logged as not run.
    """
    deadline = time.monotonic() + timeout
    running: Counter[str] = Counter()
    not_run: Counter[str] = Counter()
    try:
        if cancel_at_once:
            queue.cancel_pending(not_run)
        # Not by join(): if a signal's handler raises there, Python 3.11 and 3.12 take that worker for
        # ended, and do not wait for it when they exit.
        pause = threading.Event()
        while any(map(is_alive, workers)) and time.monotonic() < deadline:
            pause.wait(_PAUSE)
        # Even if all have ended in time: callbacks and initializers may have ended them.
        queue.cancel_pending(not_run)
        running = queue.work.running()
    finally:
        if running or not_run:
            logger.error(
                "executor=%s timeout=%s shutdown left running=%s not_run=%s",
                workers[0].name.rpartition("_")[0] if workers else None,
                timeout,
                _listed(running),
                _listed(not_run),
            )


def _listed(names: Counter[str]) -> str:
    """Return how many there are and the most frequent names, as in `3 (shop.mail x2, shop.index x1)`."""
    if not names:
        return "0"
    listed = [f"{name} x{count}" for name, count in names.most_common(_NAMED)]
    if len(names) > _NAMED:
        listed.append(f"and {len(names) - _NAMED} more")
    return f"{names.total()} ({', '.join(listed)})"
