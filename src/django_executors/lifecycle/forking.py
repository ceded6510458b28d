"""A fork: the child leaves the sockets of the parent's workers alone.

before         hold on to all that is open: CPython drops what the other threads had before any handler
               runs in the child, and some drivers say goodbye to the server when they are collected
in the child   keep it for ever, past the interpreter's own end. Put a dead end in the place of each
               socket that a worker opened: nothing reaches the server, and where the parent closes its
               side, the server notices. The forking thread is no worker any more, and connects anew
in the parent  let go
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.core.cache import caches
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from . import caching, context, ledger, variables
from .holder import Holder, current_holder
from .inspection import never_closes

#: An entry, its wrapper and the driver's connection; or a cache client, its backend and None.
_Held = tuple[Any, Any, Any]

#: What the forking threads hold on to, by thread, while they fork.
_held: dict[int, list[_Held]] = {}
#: In a forked child: all that was the parent's.
_inherited: list[object] = []
#: In a forked child: what was open at the last fork.
_found_in_parent: list[_Held] = []
# The interpreter's end would empty the list: one reference to it is never given back.
with contextlib.suppress(AttributeError):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_inherited))


def _find() -> list[_Held]:
    """Return all that is open in this process, and the workers' cache clients."""
    found: list[_Held] = []
    for entry in ledger.all_entries():
        wrapper, kept = entry.wrapper(), entry.kept
        driver = kept.driver if kept is not None else wrapper and wrapper.connection
        found.append((entry, wrapper, driver))
    found += [(client, client.backend(), None) for client in caching.of_workers()]
    return found


def _before() -> None:
    _held[threading.get_ident()] = _find()


def _after_in_parent() -> None:
    _held.pop(threading.get_ident(), None)


def _after_in_child() -> None:
    # Again: uWSGI has the handlers run in the child, and not those before the fork.
    held = [each for found in (*_held.values(), _find()) for each in found]
    _held.clear()
    _found_in_parent[:] = held
    _inherited.append(held)
    with contextlib.suppress(OSError), _dead_end() as cut_off:
        for thing, owner, driver in held:
            if isinstance(thing, caching.Client):
                for each in caching.sockets(owner):
                    cut_off(each)
            elif _is_workers(thing.holder):
                cut_off(driver)
    for entry, wrapper, _ in held:
        if isinstance(entry, ledger.Entry):
            entry.kept = entry.permit = None  # or the child would take them up again
            if wrapper is not None and entry.is_borrowed():
                wrapper.connection = None  # the task may have closed it, as one does before a fork
    ledger.forget_all()
    variables.renew_locks()
    connection_created.lock = threading.Lock()  # each connect takes it
    _forget_pools()
    holder = current_holder()
    if _is_workers(holder):
        _is_no_worker(holder)
    _inherited.append(holder.caches.copy())
    holder.caches.clear()
    holder.entries.clear()
    holder.pid = os.getpid()
    holder.thread_ident = threading.get_ident()


def leave_all() -> None:
    """Leave alone also what the thread had that has forked this process to be a worker.

    In a process that was not forked there is nothing.
    """
    clients = caches.all(initialized_only=True) if _found_in_parent else []
    with contextlib.suppress(OSError), _dead_end() as cut_off:
        for _, wrapper, driver in _found_in_parent:
            cut_off(driver)
            if isinstance(wrapper, BaseDatabaseWrapper) and not never_closes(wrapper):
                _forget(wrapper)
        for client in clients:
            for each in caching.sockets(client):
                cut_off(each)
    _inherited.append(clients)
    if clients:
        context.forget_caches()


@contextlib.contextmanager
def _dead_end() -> Iterator[Callable[[Any], None]]:
    """Return a function that puts a connection without another side in a socket's place.

    In this process only: the parent's own descriptor is another one.
    """
    ours, other = socket.socketpair()
    other.close()

    def cut_off(thing: Any) -> None:
        # Of whatever driver: some have no such method, and closed ones raise their own errors.
        with contextlib.suppress(Exception):
            fileno = thing.fileno()
            if stat.S_ISSOCK(os.fstat(fileno).st_mode):
                os.dup2(ours.fileno(), fileno, inheritable=False)

    with ours:
        yield cut_off


def _is_workers(holder: Holder) -> bool:
    """Tell whether what this thread opened is a worker's."""
    return holder.executor is not None or holder.works_for is not None


def _is_no_worker(holder: Holder) -> None:
    """Make of the calling thread, a worker of the parent's, the main thread of this process."""
    holder.executor = holder.task = holder.works_for = None
    holder.worker = holder.counts = None
    holder.scopes.clear()
    for entry in holder.copied():
        wrapper = entry.wrapper()
        if wrapper is not None and not never_closes(wrapper):  # which has no socket
            _forget(wrapper)
    context.forget_caches()
    holder.async_thread = None  # it is not here


def _forget(wrapper: BaseDatabaseWrapper) -> None:
    """Have the next query make a wrapper of its own, in no transaction, and connect."""
    _inherited.append(wrapper)
    wrapper.connection = None
    with contextlib.suppress(Exception):  # the alias may have left the settings
        if connections[wrapper.alias] is wrapper:
            del connections[wrapper.alias]


def _forget_pools() -> None:
    """Have Django make pools anew: those of the parent's would hand out its sockets."""
    for name in ("postgresql", "oracle"):
        module = sys.modules.get(f"django.db.backends.{name}.base")
        # A private name of Django's: the pools of all its wrappers, by alias.
        pools: dict[object, object] = getattr(
            getattr(module, "DatabaseWrapper", None), "_connection_pools", {}
        )
        _inherited.append(pools.copy())
        pools.clear()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
