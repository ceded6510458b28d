"""How often the workers of one executor opened, kept and closed connections."""

from __future__ import annotations

import threading
from collections import Counter
from multiprocessing.context import BaseContext
from typing import Any


class ConnectionCounts:
    """Counts by name: `opened`, `reset`, `reused`, `closed` and `close_failures`."""

    def __init__(self) -> None:
        # Reentrant: a weak reference's callback counts too, and may run while this lock is held.
        self._lock = threading.RLock()
        self._counted: Counter[str] = Counter()

    def add(self, what: str, times: int = 1) -> None:
        with self._lock:
            self._counted[what] += times

    def read(self) -> Counter[str]:
        """Return all of them, as they were at one moment."""
        with self._lock:
            return self._counted.copy()


class SharedCounts(ConnectionCounts):
    """The same for worker processes, which add, and their parent, which reads.

    The parent takes no lock that they take: one of them may be killed while it has it.
    """

    _NAMES = ("opened", "reset", "reused", "closed", "close_failures")

    def __init__(self, context: BaseContext) -> None:
        self._shared_lock = context.RLock()
        self._shared: Any = context.RawArray("q", len(self._NAMES))

    def add(self, what: str, times: int = 1) -> None:
        with self._shared_lock:
            self._shared[self._NAMES.index(what)] += times

    def read(self) -> Counter[str]:
        return Counter(dict(zip(self._NAMES, self._shared, strict=True)))
