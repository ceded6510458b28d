"""How many connections the server counts, many times a second."""

import threading
import time
from typing import Any, Self

import psycopg

INTERVAL = 0.01
COUNT = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = %s
"""

#: Seconds since the start, connections.
Sample = tuple[float, int]


class Sampler:
    """Counts the connections of one application, in a thread, on a connection that it is lent.

    That thread runs beside the process that works, not in it: the work cannot hold it up.
    """

    def __init__(self, connection: psycopg.Connection[Any], application: str) -> None:
        self._connection = connection
        self._application = application
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: Only ever appended to, by one thread, so that others may read it.
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def last(self) -> int:
        return self.samples[-1][1] if self.samples else 0

    def wait_until_stable(self, *, quiet: float = 0.3, longest: float = 1.0) -> int:
        """Wait until the count has been the same for `quiet` seconds, and return it."""
        begun = self._now()
        while not self._stop.wait(INTERVAL):
            now = self._now()
            recent = {count for at, count in self.samples if at >= now - quiet}
            if now >= begun + longest or (now >= begun + quiet and len(recent) == 1):
                break
        return self.last

    def wait_until_none(self, *, longest: float = 5.0) -> None:
        """Wait until the server counts no connection any more, or for `longest` seconds."""
        while not self._stop.wait(INTERVAL):
            if (self.samples and self.last == 0) or self._now() > longest:
                break

    def _now(self) -> float:
        return time.monotonic() - self._begun

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            at = self._now()
            row = self._connection.execute(COUNT, [self._application]).fetchone()
            assert row is not None
            self.samples.append((at, row[0]))
