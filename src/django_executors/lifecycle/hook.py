"""The one hook: it sees each connection of this process open, commit and close.

Django's handler makes each wrapper by `connections.create_connection`. That attribute of the handler,
replaced here, gives the new wrapper instance its own `connect`, `close`, `chunked_cursor` and
`run_and_clear_commit_hooks`; its class stays Django's.
The signal `connection_created` alone would be blind: where connecting fails after the socket opened,
it is never sent.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from functools import partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_executors import conf

from . import guard, incidents, keeping, ledger, limits, sessions, transactions
from .holder import Holder, current_holder, in_task_of
from .inspection import has_ended, is_open, never_closes
from .ledger import Entry
from .postgresql import PostgreSQLSessions


def _watch(wrapper: BaseDatabaseWrapper, holder: Holder) -> Entry:
    """Have the ledger follow this wrapper, for as long as it lives."""
    django_class = type(wrapper)
    entry = Entry(wrapper, holder)
    # The functions live in the wrapper's own __dict__, and must not keep it alive.
    reference = weakref.ref(wrapper)

    def connect() -> None:
        wrapper = reference()
        assert wrapper is not None
        before = wrapper.connection
        try:
            if entry.kept is not None and (
                keeping.resume(entry, wrapper) or wrapper.connection is not None
            ):
                return  # the second is SQLite in memory, which close() leaves open
            _wait_for_turn(entry, wrapper)
            django_class.connect(wrapper)
            entry.note_open(wrapper)
        except BaseException as error:
            # The socket may be open while its role, time zone or search path is not yet set. Left
            # so, the next query would run on it as whoever logged in.
            if wrapper.connection is not None and wrapper.connection is not before:
                entry.close(wrapper, dirty=True)
            if not is_open(wrapper):
                entry.give_back_permit()
            with contextlib.suppress(Exception):  # a log handler's own
                incidents.note(entry.alias, error)
            raise

    def close() -> None:
        wrapper = reference()
        assert wrapper is not None
        if entry.is_borrowed() and not has_ended(wrapper):
            return
        entry.unpark(wrapper)
        try:
            django_class.close(wrapper)
            entry.close_was_refused = is_open(wrapper)
        finally:
            if not is_open(wrapper):
                entry.note_closed()

    def chunked_cursor() -> Any:
        wrapper = reference()
        assert wrapper is not None
        cursor = django_class.chunked_cursor(wrapper)
        entry.note_cursor(cursor)
        return cursor

    commit_hooks = partial(transactions.run_commit_hooks, reference)
    vars(wrapper).update(
        connect=connect,
        close=close,
        chunked_cursor=chunked_cursor,
        run_and_clear_commit_hooks=commit_hooks,
    )
    return entry


def _wait_for_turn(entry: Entry, wrapper: BaseDatabaseWrapper) -> None:
    """Wait until this thread may connect, if a ceiling holds for it.

    It holds for each worker, for a thread in a `connection_scope` unless it is the main thread, and for
    the thread in which the event loop of a worker's task runs the ORM, while the task runs.
    """
    holder = current_holder()
    if entry.holder is not holder or never_closes(wrapper):  # lent to this thread, or of no server
        return
    ledger.give_back_unused(holder)
    if entry.permit is not None:
        return
    worker = holder.in_charge
    if holder.scopes and holder.thread_ident != threading.main_thread().ident:
        worker = holder
    elif worker.executor is None or (worker is not holder and worker.task is None):
        return
    permit = limits.permit_for(entry.alias, worker)
    if permit is not None:
        guard.arm(holder)  # a thread that nobody releases gives it back when it ends
        entry.permit = permit  # before the wait: an interruption gives it back
        permit.ceiling.wait_for(permit, conf.current().connection_wait_timeout)


def adopt(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Watch a wrapper that did not come from the handler: `connection.copy()`, or an early one."""
    if "connect" not in vars(connection):
        # A private name of Django's: it may have been made by another thread, and lent to this one.
        made_by: int = vars(connection)["_thread_ident"]
        holder = current_holder()
        if made_by != holder.thread_ident:
            holder = Holder(made_by)
        _watch(connection, holder).note_open(connection)


def _install() -> None:
    django_create = connections.create_connection

    def create_connection(alias: str) -> BaseDatabaseWrapper:
        wrapper = django_create(alias)
        holder = current_holder()
        entry = _watch(wrapper, holder)
        if in_task_of.get() not in (None, holder):
            guard.arm(holder)  # asyncio or asgiref ends it, and nobody there closes what it opened
        if ledger.on_open is not None:
            ledger.on_open(holder)  # another thread, to which it is lent, may be the one that connects
        if holder.executor is not None:
            entry.made = sessions.wrapper_state(wrapper)
        return wrapper

    # A private seam of Django's: BaseConnectionHandler.__getitem__ calls self.create_connection.
    vars(connections)["create_connection"] = create_connection
    connection_created.connect(adopt, dispatch_uid="django_executors.hook")
    sessions.register(PostgreSQLSessions())


_install()
