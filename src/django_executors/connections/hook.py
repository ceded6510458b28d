"""The one hook: it sees each connection of this process open and close.

Django's handler makes each wrapper by `connections.create_connection`. That attribute of the handler,
replaced here, gives the new wrapper instance its own `connect`, `close` and `chunked_cursor`; its class
stays Django's. The signal `connection_created` alone would be blind: where connecting fails after the
socket opened, it is never sent. It finds what did not come from the handler, and what has lost the hook,
as by the end of a `mock.patch` of one of the three.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_executors import observing
from django_executors.clock import Clock

from . import attribution, ceiling, holds, incidents, ledger, sessions, thread_end
from .ledger import CLOSED, PARKED, Entry, Holder, current_holder
from .wrapper import has_ended, is_djangos, is_open

_HOOKED = ("connect", "close", "chunked_cursor")


class _Hooks:
    """What one wrapper gets. Lives in the wrapper's own `__dict__`, and does not keep it alive."""

    def __init__(self, wrapper: BaseDatabaseWrapper, entry: Entry) -> None:
        self._reference = weakref.ref(wrapper)
        self._class = type(wrapper)
        self._entry = entry
        self._set_by_connecting: set[str] = set()
        vars(wrapper).update({name: getattr(self, name) for name in _HOOKED})

    @property
    def _wrapper(self) -> BaseDatabaseWrapper:
        wrapper = self._reference()
        assert wrapper is not None
        return wrapper

    def connect(self) -> None:
        wrapper, entry = self._wrapper, self._entry
        before = wrapper.connection
        if before is not None and entry.is_shielded():
            return
        entry.begin_connecting()
        try:
            if entry.state is PARKED and (
                sessions.resume(entry, wrapper) or wrapper.connection is not None
            ):
                return  # the second is SQLite in memory, which close() leaves open
            ceiling.wait_for_turn(entry, wrapper)
            was = vars(wrapper).copy()
            began = Clock.monotonic()
            with attribution.named(wrapper, entry.holder):
                self._class.connect(wrapper)
            entry.opened(wrapper)
            if entry.used_since is not None and (observer := observing.observer) is not None:
                observer.connected(entry.alias, entry.used_since - began)
            if entry.holder.worker.executor is not None:
                holds.watch()
            if entry.made is not None:
                now = vars(wrapper)
                # Those of an earlier time count too: what is as it was then is not told apart.
                self._set_by_connecting |= {name for name in now if now[name] is not was.get(name, self)}
                entry.session = sessions.prepare(wrapper, self._set_by_connecting)
        except BaseException as error:
            # The socket may be open while its role, time zone or search path is not yet set. Left
            # so, the next query would run on it as whoever logged in.
            if wrapper.connection is not None and wrapper.connection is not before:
                entry.close(wrapper, dirty=True)
            if not is_open(wrapper):
                entry.closed()
            with contextlib.suppress(Exception):  # a log handler's own
                incidents.note(entry.alias, error)
            raise
        finally:
            entry.end_connecting()

    def close(self) -> None:
        wrapper, entry = self._wrapper, self._entry
        if entry.is_shielded() and not has_ended(wrapper):
            return
        if (driver := entry.take()) is not None:
            wrapper.connection = driver
        try:
            self._class.close(wrapper)
            entry.close_was_refused = is_open(wrapper)
        finally:
            if not is_open(wrapper):
                entry.closed()
                entry.end_use()

    def chunked_cursor(self) -> Any:
        cursor = self._class.chunked_cursor(self._wrapper)
        self._entry.note_cursor(cursor)
        return cursor


def ensure_watched(wrapper: BaseDatabaseWrapper, *, has_connected: bool = False) -> None:
    """Watch an open wrapper that did not come from the handler, or that has lost the hook.

    Args:
        has_connected: just now.
    """
    found = vars(wrapper)
    if found.keys() >= {*_HOOKED}:
        return
    entry = ledger.entry_of(wrapper)
    if entry is None:
        # A private name of Django's: it may have been made by another thread, and lent to this one.
        made_by: int = found["_thread_ident"]
        holder = current_holder()
        if made_by != holder.thread_ident:
            holder = Holder(made_by)
        entry = holder.entries.get(id(wrapper)) or Entry(wrapper, holder)
    if entry.state is CLOSED or (has_connected and "connect" not in found):
        entry.opened(wrapper)
    _Hooks(wrapper, entry)


def _adopt(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    ensure_watched(connection, has_connected=True)


def _install() -> None:
    django_create = connections.create_connection

    def create_connection(alias: str) -> BaseDatabaseWrapper:
        wrapper = django_create(alias)
        holder = current_holder()
        entry = Entry(wrapper, holder)
        _Hooks(wrapper, entry)
        holder.touch()
        if ledger.on_open is not None:
            ledger.on_open(holder)  # another thread, to which it is lent, may be the one that connects
        elif holder.works_for is not None:
            thread_end.arm(holder)
        if holder.executor is not None and is_djangos(wrapper):
            entry.made = sessions.as_made(wrapper)
        for watcher in holder.worker.watchers:
            watcher.watch(wrapper)
        return wrapper

    # A private seam of Django's: BaseConnectionHandler.__getitem__ calls self.create_connection.
    vars(connections)["create_connection"] = create_connection
    connection_created.connect(_adopt, dispatch_uid="django_executors.hook")


_install()
