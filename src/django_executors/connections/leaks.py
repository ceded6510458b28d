"""What other threads have opened since a moment, and have not closed."""

from __future__ import annotations

import linecache
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from django_executors.clock import Clock

from . import ledger
from .ledger import Entry, info, next_serial

_PACKAGE = str(Path(__file__).parents[1])


class Watch:
    """What was open at one moment, to be told apart from what is opened after it.

    The connections of the caller's own threads do not count: whoever serves their request, or runs
    their test, closes them. But for a slot of Django's pool that one has thrown away: nobody can give
    that back.

    Args:
        own_threads: their identifiers.
    """

    def __init__(self, *own_threads: int) -> None:
        self._own_threads = own_threads
        self._serial = next_serial()
        self._before = {entry: entry.opened_at for entry in ledger.open_entries()}

    def leaks(self) -> list[str]:
        """Describe each connection that has been opened since and is open, or was never closed."""
        now = Clock.monotonic()
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
        return entry.holder.thread_ident in self._own_threads


def _describe(entry: Entry, now: float) -> str:
    record = info(entry, now)
    line = (
        f"thread={record.thread_name} alias={record.alias} backend_pid={record.backend_pid} "
        f"executor={record.executor} task={record.task} age={record.age:.1f}s"
    )
    if entry.wrapper() is None:
        line += " (left to the garbage collector, which has come for it)"
    if entry.origin is None:
        return line
    return "\n".join([line, "  opened at (most recent call last):", *_frames(entry.origin)])


def _frames(origin: tracemalloc.Traceback) -> Iterator[str]:
    for frame in origin:
        if not frame.filename.startswith(_PACKAGE):
            yield f'  File "{frame.filename}", line {frame.lineno}'
            yield f"    {linecache.getline(frame.filename, frame.lineno).strip()}"
