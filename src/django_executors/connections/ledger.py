"""What is open in this process, who holds it, since when.

Each wrapper has an `Entry`, and each entry one state, which `Entry` alone changes, under one lock:

    CLOSED ──► OPEN ◄──► PARKED       parked: the driver's connection waits beside its wrapper for the
       ▲        │          │          worker's next task, and to Django the wrapper has not connected
       └────────┴──────────┘

The lock is reentrant, since a weak reference's callback may run at any allocation, in the thread that
holds it too. No other lock is taken under it, and no foreign code runs under it.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import sys
import threading
import traceback
import tracemalloc
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from django.core.cache.backends.base import BaseCache
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import observing
from django_executors.clock import Clock
from django_executors.naming import task_name

from .wrapper import backend_pid, close_driver, close_for_good, is_open, is_open_on_server, is_pooled
from .wrapper import why_dirty as why_wrapper_is_dirty

#: Guards the state of each entry, the ceilings, and the counts of connections.
lock = threading.RLock()

_serials = itertools.count(1)
_local = threading.local()


def next_serial() -> int:
    """Return a number above all that were drawn before."""
    return next(_serials)


class ConnectionCounts:
    """How often one executor's workers opened, reset, reused and closed connections."""

    def __init__(self) -> None:
        self._counted: Counter[str] = Counter()  # guarded by lock

    def add(self, what: str) -> None:
        with lock:
            self._counted[what] += 1

    def add_all(self, counted: Mapping[str, int]) -> None:
        with lock:
            self._counted.update(counted)

    def read(self) -> Counter[str]:
        with lock:
            return self._counted.copy()

    def take(self) -> dict[str, int]:
        """Return what was counted since this was called last."""
        if not self._counted:
            return {}
        with lock:
            taken, self._counted = self._counted, Counter()
        return dict(taken)


@dataclass(slots=True, eq=False)
class CacheClient:
    """One cache client, which one thread uses."""

    alias: str
    settings: Any
    #: Returns it, or None if nobody has it any more.
    backend: Callable[[], BaseCache | None]
    serial: int
    #: Set while its worker keeps it between two tasks.
    kept_since: float | None = None


class Watcher(Protocol):
    """Sees the queries of tasks: each wrapper that one uses is shown to it, in the task's thread."""

    #: It wants to see no more.
    is_over: bool

    def watch(self, wrapper: BaseDatabaseWrapper) -> None: ...

    def unwatch(self, wrapper: BaseDatabaseWrapper) -> None: ...


class Holder:
    """What one thread holds, and what it is doing. Kept alive by the thread, and by its wrappers.

    Only the thread itself changes it; any thread may read.
    """

    def __init__(self, thread_ident: int) -> None:
        self.pid = os.getpid()
        self.thread_ident = thread_ident
        self.thread_name = _thread_name(thread_ident)
        #: It may hold a connection or a client, or a wrapper that was changed; and one was made, or
        #: used, since the last time that this was looked into. A worker that does not looks no further.
        self.is_holding = self.is_touched = False
        #: The wrappers that this thread made, open or not, by id.
        self.entries: dict[int, Entry] = {}
        #: The cache clients that this thread made and has not let go of, oldest first.
        self.caches: list[CacheClient] = []
        #: The executor whose worker this thread is.
        self.executor: str | None = None
        #: Where its connections are counted.
        self.counts: ConnectionCounts | None = None
        #: What it runs now.
        self.task: Callable[..., Any] | None = None
        #: Where an event loop that its task runs has Django's ORM run.
        self.async_thread: Executor | None = None
        #: The worker for whose tasks' event loops this thread runs the ORM.
        self.works_for: Holder | None = None
        #: The scopes that it is in, outermost first, and the serial numbers at which they began.
        self.scopes: list[tuple[object, int]] = []
        #: What connected up to this serial number is the caller's of a task in this thread, which
        #: cannot close it.
        self.shield = 0
        #: Those that see its queries.
        self.watchers: tuple[Watcher, ...] = ()
        #: How many tasks run in this thread because they were submitted in it, one in another.
        self.inline_tasks = 0

    @property
    def unit(self) -> int | None:
        """The serial number at which its unit of work began: what opened since belongs to it."""
        if self.task is not None and self.executor is not None:
            return 0
        return self.scopes[0][1] if self.scopes else None

    @property
    def worker(self) -> Holder:
        """The worker for whose tasks this thread runs the ORM; if it does for none, this one itself."""
        return self.works_for or self

    @property
    def has_an_end(self) -> bool:
        """Whether somebody lets go of what this thread makes now."""
        return bool(self.executor or self.works_for or self.scopes)

    def become_worker(self, executor: str | None, counts: ConnectionCounts | None) -> None:
        """Be one of this executor's from now on; None: of nobody's."""
        self.executor = executor
        self.counts = counts

    def run(self, task: Callable[..., Any] | None, counts: ConnectionCounts | None = None) -> None:
        """Note what this thread runs from now on, and where its connections are counted."""
        self.task = task
        if self.executor is None:  # a worker of Dask's
            self.counts = counts

    def be_watched(self, watchers: tuple[Watcher, ...]) -> None:
        self.watchers = watchers

    def set_shield(self, serial: int) -> None:
        self.shield = serial

    def begin_anew(self) -> None:
        """In a forked child: the calling thread is no worker any more, and holds nothing."""
        if self.executor is not None or self.works_for is not None:
            self.executor = self.counts = self.works_for = self.async_thread = None
            self.scopes.clear()
        self.entries.clear()
        self.caches.clear()
        self.pid = os.getpid()
        self.thread_ident = threading.get_ident()

    def touch(self) -> None:
        """A connection, a client or a wrapper is made, or used."""
        self.is_holding = self.is_touched = True

    def settled(self) -> None:
        self.is_holding = bool(self.entries or self.caches)
        self.is_touched = False

    def opened_since(self, serial: int) -> list[Entry]:
        """Return what this thread opened since that serial number was drawn, oldest first."""
        found = (entry for entry in self.copied() if entry.serial > serial)
        return sorted(found, key=lambda entry: entry.serial)

    def copied(self) -> list[Entry]:
        """Return the entries as they are now: a collection may strike one out at any moment."""
        return list(self.entries.values())


def _thread_name(ident: int) -> str:
    # Not current_thread(): in a thread that `threading` did not start, it leaves a dummy for ever.
    return next((t.name for t in threading.enumerate() if t.ident == ident), f"thread-{ident}")


def stack_of(thread_ident: int) -> str:
    """Return where this thread is now, in lines to put below a record; empty if it has ended."""
    frame = sys._current_frames().get(thread_ident)
    return "" if frame is None else "\n" + "".join(traceback.format_stack(frame)).rstrip()


def current_holder() -> Holder:
    """Return the calling thread's holder."""
    try:
        return _local.holder  # type: ignore[no-any-return]
    except AttributeError:
        _local.holder = holder = Holder(threading.get_ident())
        return holder


class State(enum.Enum):
    """What a wrapper has of a connection."""

    CLOSED = enum.auto()
    OPEN = enum.auto()
    PARKED = enum.auto()


CLOSED, OPEN, PARKED = State


class Permit(Protocol):
    """What an open connection has of a ceiling."""

    def give_back(self) -> None: ...

    def is_wanted(self) -> bool: ...


class Entry:
    """One wrapper, its holder, and what it has open. Does not keep the wrapper alive."""

    def __init__(self, wrapper: BaseDatabaseWrapper, holder: Holder) -> None:
        self.key = key = id(wrapper)
        self.alias = wrapper.alias
        self.vendor = wrapper.vendor
        self.holder = holder
        self.wrapper = weakref.ref(wrapper, lambda _: _abandon(key, holder))
        #: Django's `connect` is under way.
        self.is_connecting = False
        #: Drawn when the wrapper was made.
        self.born = next_serial()
        self.state = CLOSED  # guarded by lock
        #: Drawn when it last connected, or was taken up again; 0 if it never has.
        self.serial = 0
        self.backend_pid: int | None = None
        self.opened_at = 0.0
        #: Since when the executors, or a scope, have it in use; None: it is parked, closed, or of a
        #: thread in which Django or somebody else closes it.
        self.used_since: float | None = None
        #: Where it was opened, while `tracemalloc` is tracing.
        self.origin: tracemalloc.Traceback | None = None
        #: It holds a slot of Django's own pool.
        self.pooled = False
        #: Django was asked to close it since it connected, and has not: SQLite in memory.
        self.close_was_refused = False
        #: The server-side cursors that `iterator()` opened since it connected, and may have closed.
        self.cursors: list[weakref.ref[Any]] = []
        #: Under a ceiling, for as long as it is open.
        self.permit: Permit | None = None
        #: The parked connection, since when it is, and until when it may be taken up.
        self.driver: Any = None
        self.kept_since = self.expires_at = 0.0
        #: A worker's: how its wrapper was made, and how its session is made fresh (`sessions`).
        self.made: Any = None
        self.session: Any = None
        holder.entries[key] = self

    def begin_connecting(self) -> None:
        self.is_connecting = True

    def end_connecting(self) -> None:
        self.is_connecting = False

    # Its state. Whoever calls these is the wrapper's own thread, but where it says so.

    def opened(self, wrapper: BaseDatabaseWrapper) -> None:
        """Enter that it has connected."""
        with lock:
            if self.state is not CLOSED:
                self.count("closed")  # behind Django's back
            self.count("opened")
            self.state = OPEN
            self.serial = next(_serials)
            _open[self.key] = self.holder.entries[self.key] = self
        self.holder.touch()
        self.backend_pid = backend_pid(wrapper)
        self.pooled = is_pooled(wrapper)
        self.close_was_refused = False
        self.cursors.clear()
        self.opened_at = Clock.monotonic()
        self.begin_use()
        self.origin = tracemalloc.get_object_traceback(object()) if tracemalloc.is_tracing() else None
        self.session = None
        if on_open is not None and self.holder is current_holder():
            on_open(self.holder)

    def park(self, wrapper: BaseDatabaseWrapper, expires_at: float) -> None:
        """Put the driver's connection beside the wrapper."""
        driver = wrapper.connection
        with lock:
            self.driver, self.kept_since, self.expires_at = driver, Clock.monotonic(), expires_at
            self.state = PARKED
        wrapper.connection = None
        self.end_use()

    def begin_use(self) -> None:
        """It is open, for whatever its thread does now."""
        self.used_since = Clock.monotonic() if self.holder.has_an_end else None

    def end_use(self) -> None:
        """It was let go of. Not called under a lock, nor where the collector has come for it."""
        since, self.used_since = self.used_since, None
        if since is not None and (observer := observing.observer) is not None:
            observer.used(self.alias, Clock.monotonic() - since)

    def take(self) -> Any:
        """Return what is parked, which is in use from now on, or None: it was taken away."""
        with lock:
            if self.state is not PARKED:
                return None
            driver, self.driver = self.driver, None
            self.state = OPEN
            self.serial = next(_serials)
        return driver

    def close_parked(self) -> bool:
        """Close what is parked, and tell whether there was anything. Any thread may call this."""
        with lock:
            if self.state is not PARKED:
                return False
            driver, self.driver = self.driver, None
            permit, self.permit = self.permit, None
            self.closed()
        with contextlib.suppress(Exception):  # nobody is there to hear of it
            close_driver(driver)
        if permit is not None:  # not before, or there would be one more than is allowed
            permit.give_back()
        return True

    def closed(self) -> None:
        """Enter that it has nothing open any more. Any thread may call this."""
        with lock:
            if self.state is not CLOSED:
                self.state = CLOSED
                _open.pop(self.key, None)
                self.count("closed")
            permit, self.permit = self.permit, None
            if permit is not None:
                permit.give_back()

    # What is done to it.

    def close(self, wrapper: BaseDatabaseWrapper, *, dirty: bool) -> BaseException | None:
        """Close it for good and return what went wrong. See `close_for_good`."""
        if (driver := self.take()) is not None:
            wrapper.connection = driver
        error = close_for_good(wrapper, dirty=dirty)
        if error is not None:
            self.count("close_failures")
        if not is_open(wrapper):  # where closing went wrong, the hook has not seen it
            self.closed()
            self.end_use()
        return error

    def note_cursor(self, cursor: Any) -> None:
        """Record a cursor that `chunked_cursor` has opened."""
        self.cursors = [weakref.ref(cursor), *filter(is_open_on_server, self.cursors)]

    def why_dirty(self, wrapper: BaseDatabaseWrapper) -> str | None:
        """Say why this connection must not be used again, or None if nothing speaks against it."""
        if self.cursors and wrapper.connection is not None and any(map(is_open_on_server, self.cursors)):
            return "an open server-side cursor"
        return why_wrapper_is_dirty(wrapper)

    def count(self, what: str) -> None:
        """Count this for the executor whose worker it happens to, if it is one."""
        if (counts := self.holder.counts) is not None:
            counts.add(what)

    def is_shielded(self) -> bool:
        """Tell whether it is the caller's of a task that now runs in the calling thread."""
        shield = current_holder().shield
        return shield > 0 and 0 < self.serial <= shield

    def holds(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Tell whether there is a connection, in the wrapper or parked beside it."""
        return self.state is PARKED or is_open(wrapper)

    def is_held(self) -> bool:
        wrapper = self.wrapper()
        return wrapper is not None and self.holds(wrapper)

    def forget(self) -> None:
        """Strike out a wrapper that will not be used again."""
        _strike_out(self.key, self.holder)


_open: dict[int, Entry] = {}
#: Those that were left to the garbage collector, which has come.
abandoned: deque[Entry] = deque(maxlen=1000)

#: Called with its holder in each thread that opens a connection. `thread_end` sets it.
on_open: Callable[[Holder], None] | None = None

# Readers copy first, with `list()`: on Python 3.11 a collection in the middle of `dict.copy()` leaves a
# copy that cannot be iterated.


def all_entries() -> list[Entry]:
    """Return what has connected and was not closed since, in no order."""
    return list(_open.values())


def open_entries() -> tuple[Entry, ...]:
    """Return what is open in this process, oldest first."""
    found = sorted(all_entries(), key=lambda entry: entry.serial)
    return tuple(entry for entry in found if entry.is_held())


def left_open() -> tuple[Entry, ...]:
    """Return what is open, and what was left to the garbage collector, oldest first."""
    # In this order: what is collected meanwhile goes from the first to the second. In the middle of a
    # collection a wrapper is gone already, and `_abandon` not yet called.
    found = [
        entry for entry in all_entries() if (wrapper := entry.wrapper()) is None or entry.holds(wrapper)
    ]
    return tuple(sorted({*found, *abandoned.copy()}, key=lambda entry: entry.serial))


def entry_of(wrapper: BaseDatabaseWrapper) -> Entry | None:
    """Return the entry of an open wrapper, whichever thread made it."""
    return _open.get(id(wrapper))


def is_connecting(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether Django's `connect` is under way, in the calling thread."""
    entry = entry_of(wrapper) or current_holder().entries.get(id(wrapper))
    return entry is not None and entry.is_connecting


def holds_permit(alias: str) -> bool:
    """Tell whether the calling thread holds one of the connections that a ceiling allows."""
    return any(entry.alias == alias and entry.permit is not None for entry in current_holder().copied())


def _abandon(key: int, holder: Holder) -> None:
    """A wrapper has been collected."""
    if (entry := _open.get(key)) is not None:
        abandoned.append(entry)
    _strike_out(key, holder)


def _strike_out(key: int, holder: Holder) -> None:
    entry = holder.entries.pop(key, None)
    if entry is None:
        _open.pop(key, None)
        return
    entry.made = entry.session = None  # which refer to the wrapper, and to the driver's connection
    if not entry.close_parked():
        entry.closed()


def forget_all() -> None:
    """In a forked child: what is open is the parent's."""
    _open.clear()
    abandoned.clear()


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


def all_connections() -> tuple[ConnectionInfo, ...]:
    """Return every open Django connection of this process, oldest first, whichever thread holds it.

    What `connections.all()` cannot see: that shows the calling thread's own. Open is meant as Django
    sees it: a connection that the server has killed counts until its thread notices. One that a
    worker keeps for its next task counts too, without a task. Connections that were open before
    `django_executors` was imported are not known until they next connect.

    Any thread may call this; it takes no lock, asks no server and keeps nothing alive.
    """
    now = Clock.monotonic()
    return tuple(info(entry, now) for entry in open_entries())


def info(entry: Entry, now: float) -> ConnectionInfo:
    """Return the record of one entry, at this moment."""
    holder, task = entry.holder, entry.holder.task
    return ConnectionInfo(
        alias=entry.alias,
        vendor=entry.vendor,
        backend_pid=entry.backend_pid,
        thread_name=holder.thread_name,
        thread_ident=holder.thread_ident,
        age=max(0.0, now - entry.opened_at),  # it may have connected anew meanwhile
        executor=holder.executor,
        task=None if task is None else task_name(task),
    )
