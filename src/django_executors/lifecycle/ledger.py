"""What is open in this process, who holds it, since when.

There is no lock. Each change of a dict here is one atomic operation, and readers copy first, because
a weak reference's callback, which may run at any allocation, could never wait for a lock that its own
thread holds. They copy with `list()`: on Python 3.11 a collection in the middle of `dict.copy()` leaves
a copy that cannot be iterated.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .attributes import Attributes
from .closing import close_driver, close_for_good
from .counting import ConnectionCounts
from .holder import Holder, current_holder, next_serial
from .inspection import backend_pid, is_open, is_open_on_server, is_pooled, why_dirty
from .limits import Permit
from .sessions import Snapshot, take_snapshot


class Kept:
    """A driver's connection that waits for the next task, parked beside its wrapper."""

    __slots__ = ("_unclaimed", "driver", "expires_at", "fresh", "since")

    def __init__(self, driver: Any, since: float, expires_at: float, *, fresh: bool) -> None:
        self.driver = driver
        self.since = since
        self.expires_at = expires_at
        #: Its session was asked to become a new one (CONN_MAX_AGE = 0).
        self.fresh = fresh
        self._unclaimed = [None]

    def claim(self) -> bool:
        """Take it, to use or to close it; False if another thread has.

        Its worker, or under a ceiling whoever waits for its permit, may be first.
        """
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def is_claimed(self) -> bool:
        return not self._unclaimed


class Entry:
    """One wrapper, its holder, and what it has open. Does not keep the wrapper alive."""

    __slots__ = (
        "alias",
        "backend_pid",
        "born",
        "borrowers",
        "close_was_refused",
        "cursors",
        "holder",
        "kept",
        "key",
        "made",
        "opened_at",
        "origin",
        "permit",
        "pooled",
        "serial",
        "snapshot",
        "vendor",
        "wrapper",
    )

    def __init__(self, wrapper: BaseDatabaseWrapper, holder: Holder) -> None:
        self.key = key = id(wrapper)
        self.alias = wrapper.alias
        self.vendor = wrapper.vendor
        self.holder = holder
        self.wrapper = weakref.ref(wrapper, lambda _: _abandon(key, holder))
        self.backend_pid: int | None = None
        #: The serial number that was drawn when the wrapper was made.
        self.born = next_serial()
        #: A mark for each task that now uses it in its caller's thread, and must not close it.
        self.borrowers: list[weakref.ref[Any]] = []
        #: Django was asked to close it since it connected, and has not: SQLite in memory.
        self.close_was_refused = False
        #: The server-side cursors that `iterator()` opened since it connected, and may have closed.
        self.cursors: list[weakref.ref[Any]] = []
        #: Under a ceiling, for as long as it is open.
        self.permit: Permit | None = None
        #: It holds a slot of Django's own pool.
        self.pooled = False
        self.opened_at = 0.0
        #: Where it was opened, while `tracemalloc` is tracing.
        self.origin: tracemalloc.Traceback | None = None
        #: Drawn when it last connected, or was taken up again; 0 if it never has.
        self.serial = 0
        #: Set while it is kept between two tasks.
        self.kept: Kept | None = None
        #: How the wrapper was made, before any task had set a hook or a flag on it.
        self.made: Attributes | None = None
        #: How it was right after connecting, if its session may be reset in place.
        self.snapshot: Snapshot | None = None
        holder.entries[key] = self

    def note_open(self, wrapper: BaseDatabaseWrapper) -> None:
        """Enter that it has connected."""
        self.backend_pid = backend_pid(wrapper)
        self.pooled = is_pooled(wrapper)
        self.close_was_refused = False
        self.cursors = []
        self.opened_at = time.monotonic()
        self.origin = tracemalloc.get_object_traceback(object()) if tracemalloc.is_tracing() else None
        if self.permit is not None:
            self.permit.has_connected = True
        if self.key in _open:
            self.count("closed")  # behind Django's back
        self.count("opened")
        self.note_use()
        _open[self.key] = self.holder.entries[self.key] = self
        if self.made is not None:
            if (level := vars(wrapper).get("isolation_level")) is not None:
                self.made.learn("isolation_level", level)  # PostgreSQL's has it from connecting
            self.snapshot = take_snapshot(wrapper, self.made)
        if on_open is not None and self.holder is current_holder():
            on_open(self.holder)

    def note_cursor(self, cursor: Any) -> None:
        """Record a cursor that `chunked_cursor` has opened."""
        self.cursors = [weakref.ref(cursor), *filter(is_open_on_server, self.cursors)]

    def why_dirty(self, wrapper: BaseDatabaseWrapper) -> str | None:
        """Say why this connection must not be used again, or None if nothing speaks against it."""
        if wrapper.connection is not None and any(map(is_open_on_server, self.cursors)):
            return "an open server-side cursor"
        return why_dirty(wrapper)

    def note_use(self) -> None:
        """Enter that it belongs to the unit of work that runs now."""
        self.serial = next_serial()

    def note_closed(self) -> None:
        """Enter that it has nothing open any more."""
        if _open.pop(self.key, None) is not None:
            self.count("closed")
        self.give_back_permit()

    def count(self, what: str) -> None:
        """Count this for the executor whose worker it happens to, if it is one."""
        if (counts := self.counts) is not None:
            counts.add(what)

    @property
    def counts(self) -> ConnectionCounts | None:
        return self.holder.in_charge.counts

    def give_back_permit(self) -> None:
        if (permit := self.permit) is not None:
            self.permit = None
            permit.give_back()

    def close(self, wrapper: BaseDatabaseWrapper, *, dirty: bool) -> BaseException | None:
        """Close it for good and return what went wrong. See `close_for_good`."""
        self.unpark(wrapper)
        error = close_for_good(wrapper, dirty=dirty)
        if error is not None:
            self.count("close_failures")
        if not is_open(wrapper):  # where closing went wrong, the hook has not seen it
            self.note_closed()
        return error

    def is_borrowed(self) -> bool:
        """Tell whether a task now uses it in its caller's thread, and must not close it."""
        return any(mark() is not None for mark in self.borrowers)

    def is_held(self) -> bool:
        wrapper = self.wrapper()
        return wrapper is not None and self.holds(wrapper)

    def holds(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Tell whether there is a connection, in the wrapper or parked beside it."""
        kept = self.kept  # at once: another thread's may have ended
        return (kept is not None and not kept.is_claimed()) or is_open(wrapper)

    def unpark(self, wrapper: BaseDatabaseWrapper) -> None:
        """Give the wrapper back what is parked beside it, if anything is, so that it can be closed."""
        if (kept := self.take_kept()) is not None:
            wrapper.connection = kept.driver

    def take_kept(self) -> Kept | None:
        """Take what is parked beside the wrapper, unless it was taken away for its permit."""
        kept, self.kept = self.kept, None
        if kept is None:
            return None
        if not kept.claim():
            _open.pop(self.key, None)  # whoever took it away has counted it
            return None
        if self.permit is not None:
            self.permit.reclaim = None
        return kept

    def forget(self) -> None:
        """Strike out a wrapper that will not be used again."""
        _strike_out(self.key, self.holder)


def give_back_unused(holder: Holder) -> None:
    """Give back the permits of what was closed behind Django's back, or taken away for its permit."""
    for entry in holder.copied():
        permit = entry.permit
        if permit is not None and permit.has_connected and not entry.is_held():
            entry.take_kept()
            entry.note_closed()


_open: dict[int, Entry] = {}
#: Those that were left to the garbage collector, which has come.
abandoned: deque[Entry] = deque(maxlen=1000)

#: Called with its holder in each thread that opens a connection. The guard sets it.
on_open: Callable[[Holder], None] | None = None


def all_entries() -> list[Entry]:
    """Return what has connected and was not closed since, in no order."""
    return list(_open.values())


def open_entries() -> tuple[Entry, ...]:
    """Return what is open in this process, oldest first."""
    found = sorted(_open.values(), key=lambda entry: entry.serial)
    return tuple(entry for entry in found if entry.is_held())


def left_open() -> tuple[Entry, ...]:
    """Return what is open, and what was left to the garbage collector, oldest first."""
    # In this order: what is collected meanwhile goes from the first to the second. In the middle of a
    # collection a wrapper is gone already, and `_abandon` not yet called.
    found = [
        entry
        for entry in list(_open.values())
        if (wrapper := entry.wrapper()) is None or entry.holds(wrapper)
    ]
    return tuple(sorted({*found, *abandoned.copy()}, key=lambda entry: entry.serial))


def entry_of(wrapper: BaseDatabaseWrapper) -> Entry | None:
    """Return the entry of an open wrapper, whichever thread made it."""
    return _open.get(id(wrapper))


def _abandon(key: int, holder: Holder) -> None:
    """A wrapper has been collected."""
    if (entry := _open.get(key)) is not None:
        entry.made = entry.snapshot = None  # which refer to the driver's connection
        abandoned.append(entry)
    _strike_out(key, holder)


def _strike_out(key: int, holder: Holder) -> None:
    entry = holder.entries.pop(key, None)
    if entry is None:
        _open.pop(key, None)
    else:
        with contextlib.suppress(Exception):  # thrown away with a connection parked beside it
            if (kept := entry.take_kept()) is not None:
                close_driver(kept.driver)
        entry.note_closed()


def forget_all() -> None:
    """In a forked child: what is open is the parent's."""
    _open.clear()
    abandoned.clear()
