"""The bound on a pool's queue, `max_pending`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

Future = concurrent.futures.Future[Any]


class NoRoom(Exception):  # noqa: N818
    """The queue is full. Never leaves this package."""


class Bound:
    """At most so many tasks are submitted and not begun.

    A task has its place from the moment it is queued, by the pool's `submit`, until it begins or is
    cancelled. So one that waits here has no place yet: it tries again when one may be free, and finds
    there, too, whether the pool was shut down or has broken meanwhile. It passes on what it was told if
    it then does not take the place.
    """

    def __init__(self, most: int, *, blocks: bool) -> None:
        self._most = most
        self.blocks = blocks
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted. Taken by
        # itself: a signal's handler that raised in `Condition.__enter__` would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._places: set[Future] = set()
        self._is_closed = False  # guarded by _lock

    def check(self) -> None:
        """See whether there is a place. Only who holds the pool's lock takes one.

        Raises:
            NoRoom: there is none.
        """
        if len(self._places) >= self._most:
            raise NoRoom

    def take(self, future: Future) -> None:
        self._places.add(future)

    def give_back(self, future: Future) -> None:
        """This task has begun, or never will. Twice is as good as once."""
        with self._lock:
            self._places.discard(future)
            self._changed.notify()

    def wait(self) -> None:
        """Return when it is worth another try."""
        with self._lock:
            while len(self._places) >= self._most and not self._is_closed:
                self._changed.wait()

    def pass_on(self) -> None:
        """The caller takes no place that it may have been told of."""
        with self._lock:
            self._changed.notify()

    def close(self) -> None:
        """The pool takes no more tasks: whoever waits tries again, and hears of it."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()


def runs_event_loop() -> bool:
    """Tell whether an event loop runs in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
