"""What other threads have opened since a moment, and have not closed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import ledger
from .ledger import Entry, current_holder
from .listing import info


class Watch:
    """What was open at one moment, to be told apart from what is opened after it.

    The connections of the calling thread do not count: whoever serves its request, or runs its test,
    closes them. But for a slot of Django's pool that it has thrown away: nobody can give that back.
    """

    def __init__(self) -> None:
        self._thread_ident = current_holder().thread_ident
        self._serial = ledger.next_serial()
        self._before = {entry: entry.opened_at for entry in ledger.open_entries()}

    def leaks(self) -> list[str]:
        """Describe each connection that has been opened since and is open, or was never closed."""
        now = time.monotonic()
        return [_describe(entry, now) for entry in self._left_open()]

    def _left_open(self) -> Iterator[Entry]:
        for entry in ledger.left_open():
            if (
                entry.serial > self._serial
                and self._before.get(entry) != entry.opened_at  # opened before, and used since
                and not entry.close_was_refused
                and (not self._is_own(entry) or (entry.pooled and entry.wrapper() is None))
            ):
                yield entry

    def _is_own(self, entry: Entry) -> bool:
        # By number, not by holder: a wrapper of its own that it lent before the ledger knew it has a
        # holder of its own. While the calling thread lives, no other one gets its number.
        return entry.holder.thread_ident == self._thread_ident


def _describe(entry: Entry, now: float) -> str:
    record = info(entry, now)
    line = (
        f"thread={record.thread_name} alias={record.alias} backend_pid={record.backend_pid} "
        f"executor={record.executor} task={record.task} age={record.age:.1f}s"
    )
    if entry.wrapper() is None:
        line += " (left to the garbage collector, which has closed it)"
    if entry.origin is None:
        return line
    return "\n".join([line, "  opened at (most recent call last):", *entry.origin.format()])
