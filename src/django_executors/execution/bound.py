"""The bound on a pool's queue, `max_pending`."""

from __future__ import annotations

import asyncio
import threading


class NoRoom(Exception):  # noqa: N818
    """The queue is full. Never leaves this package."""


class Bound:
    """At most so many tasks are submitted and not begun.

    A task has its place from the moment it is queued, by the pool's `submit`, until it begins or is
    cancelled. So one that waits here has no place yet: it tries again when one may be free, and finds
    there, too, whether the pool was shut down or has broken meanwhile.
    """

    def __init__(self, most: int, *, blocks: bool) -> None:
        self._most = most
        self.blocks = blocks
        # Reentrant: a generator that the collector finalizes may cancel what it has submitted.
        self._changed = threading.Condition(threading.RLock())
        self._taken = 0
        self._is_closed = False

    def take(self) -> None:
        """Take a place.

        Raises:
            NoRoom: there is none.
        """
        with self._changed:
            if self._taken >= self._most:
                raise NoRoom
            self._taken += 1

    def give_back(self) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify()

    def wait(self) -> None:
        """Return when it is worth another try."""
        with self._changed:
            try:
                while self._taken >= self._most and not self._is_closed:
                    self._changed.wait()
            except BaseException:
                self._changed.notify()  # another one waits for the place that this one was told of
                raise

    def close(self) -> None:
        """The pool is about to take no more tasks: whoever waits tries again until it says so."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def runs_event_loop() -> bool:
    """Tell whether an event loop runs in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
