"""A fork: the child leaves the sockets of the parent's workers alone.

before         hold on to all that is open: CPython drops what the other threads had before any handler
               runs in the child, and some drivers say goodbye to the server when they are collected
in the child   put a dead end in the place of each socket of a thread that is not here, or of a worker:
               nothing reaches the server, and where the parent closes its side, the server notices. The
               forking thread is no worker any more, and connects anew
in the parent  let go

Servers that fork in C run no handler. There a pool's `submit` finds that the process is another one, and
calls `after_in_child` itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.core.cache import caches as django_caches
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import caches, ledger, thread_end
from .ledger import Entry, Holder, current_holder
from .wrapper import never_closes

#: What is open: an entry, its wrapper and the driver's connection.
_Held = list[tuple[Entry, Any, Any]]

#: While a thread forks, what it holds on to; in a forked child, all that was the parent's.
_held: list[_Held] = []

#: The process in which this module was imported, or `after_in_child` called.
pid = os.getpid()


def _find() -> _Held:
    """Return all that is open in this process."""
    found: _Held = []
    for entry in ledger.all_entries():
        wrapper = entry.wrapper()
        found.append((entry, wrapper, entry.driver or (wrapper and wrapper.connection)))
    return found


def _before() -> None:
    ledger.lock.acquire()  # so that the child has it, too
    _held.append(_find())


def _after_in_parent() -> None:
    _held.pop()
    ledger.lock.release()


def _after_in_child() -> None:
    with contextlib.suppress(RuntimeError):  # uWSGI has the handlers run in the child alone
        ledger.lock.release()
    after_in_child()


def after_in_child() -> None:
    """Leave alone what the parent's workers have open."""
    global pid
    pid = os.getpid()
    _held.append(_find())
    holder = current_holder()
    with contextlib.suppress(OSError), _dead_end() as cut_off:
        for entry, wrapper, driver in (each for held in _held for each in held):
            if entry.holder is not holder or _is_workers(holder):
                cut_off(driver)
            elif entry.is_shielded() and wrapper is not None:
                wrapper.connection = None  # the task may have closed it, as one does before a fork
    ledger.forget_all()
    thread_end.failures.clear()
    _forget_pools()
    if _is_workers(holder):
        for entry in holder.copied():
            if (wrapper := entry.wrapper()) is not None and not never_closes(wrapper):
                _forget(wrapper)
        caches.forget_all()
    holder.begin_anew()


def leave_all() -> None:
    """Leave alone also what the thread had that has forked this process to be a worker.

    In a process that was not forked there is nothing.
    """
    with contextlib.suppress(OSError), _dead_end() as cut_off:
        for _, wrapper, driver in (each for held in _held for each in held):
            cut_off(driver)
            if isinstance(wrapper, BaseDatabaseWrapper) and not never_closes(wrapper):
                _forget(wrapper)
    if _held and settings.configured:
        _inherited.extend(django_caches.all(initialized_only=True))
    caches.forget_all()


#: In a forked child: clients and wrappers of the parent's, which nobody is to collect.
_inherited: list[object] = []


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
