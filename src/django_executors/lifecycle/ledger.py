"""What is open in this process, who holds it, since when.

There is no lock. Each change of a dict here is one atomic operation, and readers copy first, because
a weak reference's callback, which may run at any allocation, could never wait for a lock that its own
thread holds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .attributes import Attributes
from .closing import close_for_good
from .inspection import backend_pid, is_open
from .naming import task_name
from .sessions import Snapshot, take_snapshot

_serials = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One open connection of this process, as `all_connections` saw it.

    Attributes:
        alias: its name in `settings.DATABASES`.
        vendor: `"postgresql"`, `"mysql"`, `"sqlite"`, …
        backend_pid: the server's number for it (`pg_stat_activity.pid`, `PROCESSLIST.ID`), or None
            where the driver does not tell.
        thread_name: the thread that holds it.
        thread_ident: that thread's `threading.get_ident()`.
        age: seconds since it was opened.
        executor: the `thread_name_prefix` of the executor whose worker holds it, or None.
        task: the qualified name of the task that runs in that thread now, or None.
    """

    alias: str
    vendor: str
    backend_pid: int | None
    thread_name: str
    thread_ident: int
    age: float
    executor: str | None
    task: str | None


class Holder:
    """What one thread holds. Kept alive by the thread, and by the wrappers that it made."""

    __slots__ = ("entries", "executor", "pid", "scopes", "task", "thread_ident", "thread_name")

    def __init__(self, thread_ident: int) -> None:
        self.pid = os.getpid()
        self.thread_ident = thread_ident
        self.thread_name = _thread_name(self.thread_ident)
        #: The wrappers that this thread made, open or not, by id.
        self.entries: dict[int, Entry] = {}
        #: The executor whose worker this thread is.
        self.executor: str | None = None
        #: What it runs now.
        self.task: Callable[..., Any] | None = None
        #: The scopes that it is in, outermost first, and the serial numbers at which they began.
        self.scopes: list[tuple[object, int]] = []

    @property
    def unit(self) -> int | None:
        """The serial number at which its unit of work began: what opened since belongs to it."""
        if self.task is not None and self.executor is not None:
            return 0
        return self.scopes[0][1] if self.scopes else None

    def opened_since(self, serial: int) -> list[Entry]:
        """Return what this thread opened since that serial number was drawn, oldest first."""
        found = (entry for entry in self.copied() if entry.serial > serial)
        return sorted(found, key=lambda entry: entry.serial)

    def copied(self) -> tuple[Entry, ...]:
        """Return the entries as they are now: a collection may strike one out at any moment."""
        return tuple(self.entries.copy().values())


def _thread_name(ident: int) -> str:
    # Not current_thread(): in a thread that `threading` did not start, it leaves a dummy for ever.
    return next((t.name for t in threading.enumerate() if t.ident == ident), f"thread-{ident}")


class Kept:
    """A driver's connection that waits for the next task, parked beside its wrapper."""

    __slots__ = ("driver", "expires_at", "fresh", "since")

    def __init__(self, driver: Any, since: float, expires_at: float, *, fresh: bool) -> None:
        self.driver = driver
        self.since = since
        self.expires_at = expires_at
        #: Its session was asked to become a new one (CONN_MAX_AGE = 0).
        self.fresh = fresh


class Entry:
    """One wrapper, its holder, and what it has open. Does not keep the wrapper alive."""

    __slots__ = (
        "alias",
        "backend_pid",
        "born",
        "holder",
        "kept",
        "made",
        "opened_at",
        "serial",
        "snapshot",
        "vendor",
        "wrapper",
    )

    def __init__(self, wrapper: BaseDatabaseWrapper, holder: Holder) -> None:
        key = id(wrapper)
        self.alias = wrapper.alias
        self.vendor = wrapper.vendor
        self.holder = holder
        self.wrapper = weakref.ref(wrapper, lambda _: _strike_out(key, holder))
        self.backend_pid: int | None = None
        #: The serial number that was drawn when the wrapper was made.
        self.born = next(_serials)
        self.opened_at = 0.0
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
        self.opened_at = time.monotonic()
        self.note_use()
        key = id(wrapper)
        _open[key] = self.holder.entries[key] = self
        if self.made is not None:
            if (level := vars(wrapper).get("isolation_level")) is not None:
                self.made.learn("isolation_level", level)  # PostgreSQL's has it from connecting
            self.snapshot = take_snapshot(wrapper, self.made)
        if on_open is not None and self.holder is current_holder():
            on_open(self.holder)

    def note_use(self) -> None:
        """Enter that it belongs to the unit of work that runs now."""
        self.serial = next(_serials)

    def note_closed(self, wrapper: BaseDatabaseWrapper) -> None:
        """Enter that it has closed."""
        _open.pop(id(wrapper), None)

    def close(self, wrapper: BaseDatabaseWrapper, *, dirty: bool) -> BaseException | None:
        """Close it for good and return what went wrong. See `close_for_good`."""
        self.unpark(wrapper)
        error = close_for_good(wrapper, dirty=dirty)
        if not is_open(wrapper):  # where closing went wrong, the hook has not seen it
            self.note_closed(wrapper)
        return error

    def is_held(self) -> bool:
        wrapper = self.wrapper()
        return wrapper is not None and self.holds(wrapper)

    def holds(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Tell whether there is a connection, in the wrapper or parked beside it."""
        return self.kept is not None or is_open(wrapper)

    def unpark(self, wrapper: BaseDatabaseWrapper) -> None:
        """Give the wrapper back what is parked beside it, if anything is, so that it can be closed."""
        if self.kept is not None:
            wrapper.connection = self.kept.driver
            self.kept = None

    def forget(self, wrapper: BaseDatabaseWrapper) -> None:
        """Strike out a wrapper that will not be used again."""
        _strike_out(id(wrapper), self.holder)

    def info(self, now: float) -> ConnectionInfo:
        holder, task = self.holder, self.holder.task
        return ConnectionInfo(
            alias=self.alias,
            vendor=self.vendor,
            backend_pid=self.backend_pid,
            thread_name=holder.thread_name,
            thread_ident=holder.thread_ident,
            age=max(0.0, now - self.opened_at),  # it may have connected anew meanwhile
            executor=holder.executor,
            task=None if task is None else task_name(task),
        )


_open: dict[int, Entry] = {}
_local = threading.local()
#: The parent's connections, in a forked child. Some drivers say goodbye when theirs are collected.
_inherited: list[object] = []

#: Called with its holder in each thread that opens a connection. The guard sets it.
on_open: Callable[[Holder], None] | None = None


def all_connections() -> tuple[ConnectionInfo, ...]:
    """Return every open Django connection of this process, oldest first, whichever thread holds it.

    What `connections.all()` cannot see: that shows the calling thread's own. Open is meant as Django
    sees it: a connection that the server has killed counts until its thread notices. One that a
    worker keeps for its next task counts too, without a task. Connections that were open before
    `django_executors` was imported are not known until they next connect.

    Any thread may call this; it takes no lock, asks no server and keeps nothing alive.
    """
    found = sorted(_open.copy().values(), key=lambda entry: entry.serial)
    now = time.monotonic()
    return tuple(entry.info(now) for entry in found if entry.is_held())


def current_holder() -> Holder:
    """Return the calling thread's holder."""
    try:
        return _local.holder  # type: ignore[no-any-return]
    except AttributeError:
        _local.holder = holder = Holder(threading.get_ident())
        return holder


def next_serial() -> int:
    """Return a number above that of every connection opened so far."""
    return next(_serials)


def _strike_out(key: int, holder: Holder) -> None:
    _open.pop(key, None)
    entry = holder.entries.pop(key, None)
    if entry is not None and entry.kept is not None:
        with contextlib.suppress(Exception):  # thrown away with a connection parked beside it
            entry.kept.driver.close()


def _after_fork_in_child() -> None:
    """Forget the parent's connections: their sockets are the parent's, and are left alone."""
    for entry in _open.copy().values():
        wrapper = entry.wrapper()
        _inherited.append((wrapper and wrapper.connection, entry.kept))
        entry.kept = None  # or the child would take it up again
    _open.clear()
    holder: Holder | None = getattr(_local, "holder", None)
    if holder is not None:
        holder.entries.clear()
        holder.pid = os.getpid()
        holder.thread_ident = threading.get_ident()


os.register_at_fork(after_in_child=_after_fork_in_child)
