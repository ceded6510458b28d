"""The end of a pool that has a deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from django_executors.lifecycle.naming import listed

from .work import is_alive

logger = logging.getLogger(__name__)

_PAUSE = 0.005


class Ending(Protocol):
    """What is asked of an executor's work."""

    def cancel_pending(self, cancelled: Counter[str]) -> None: ...

    def running(self) -> Counter[str]: ...


def end(
    name: str | None,
    threads: Sequence[threading.Thread],
    work: Ending,
    timeout: float,
    *,
    cancel_at_once: bool,
) -> None:
    """Wait until the threads have ended, at most for that many seconds, and log what they left.

    A task is cancelled by whoever takes it out of the queue first, here or a worker that runs it, so
    none is both run and logged as not run.
    """
    deadline = time.monotonic() + timeout
    running: Counter[str] = Counter()
    not_run: Counter[str] = Counter()
    try:
        if cancel_at_once:
            work.cancel_pending(not_run)
        # Not by join(): if a signal's handler raises there, Python 3.11 and 3.12 take that worker for
        # ended, and do not wait for it when they exit.
        pause = threading.Event()
        while any(map(is_alive, threads)) and time.monotonic() < deadline:
            pause.wait(_PAUSE)
        # Even if all have ended in time: callbacks and initializers may have ended them.
        work.cancel_pending(not_run)
        running = work.running()
    finally:
        if running or not_run:
            logger.error(
                "executor=%s timeout=%s shutdown left running=%s not_run=%s",
                name,
                round(timeout, 2),
                listed(running),
                listed(not_run),
            )
