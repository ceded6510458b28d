"""How often the workers of one executor opened, kept and closed connections."""

from __future__ import annotations

import threading
from collections import Counter


class ConnectionCounts:
    """Counts by name: `opened`, `reset`, `reused`, `closed` and `close_failures`."""

    def __init__(self) -> None:
        # Reentrant: a weak reference's callback counts too, and may run while this lock is held.
        self._lock = threading.RLock()
        self._counted: Counter[str] = Counter()

    def add(self, what: str) -> None:
        with self._lock:
            self._counted[what] += 1

    def read(self) -> Counter[str]:
        """Return all of them, as they were at one moment."""
        with self._lock:
            return self._counted.copy()
