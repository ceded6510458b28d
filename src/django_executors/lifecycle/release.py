"""Let go of what the calling thread holds. Errors on the way are logged, never raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist

from . import guard
from .inspection import is_open, why_dirty
from .ledger import Entry, Holder
from .naming import task_name

logger = logging.getLogger(__name__)

#: alias, what was found, and the error if closing failed.
_Amiss = tuple[str, str, BaseException | None]


def release(holder: Holder, *, interrupted: bool = False) -> None:
    """Close all that the calling worker opened, and drop all wrappers that it made.

    Whatever comes next makes new ones: hooks, tenants and flags left on the old do not come back.

    Args:
        interrupted: the task ended by an exception that is no `Exception`, so that a query of which
            Django knows nothing may be under way.
    """
    if holder.entries or guard.failures:
        _release(holder, holder.copied(), interrupted=interrupted)
        # A log handler of the project's may have used the ORM meanwhile.
        _release(holder, holder.copied(), report=False)


def release_since(holder: Holder, serial: int, *, interrupted: bool = False) -> None:
    """Close what the calling thread opened since this serial number was drawn."""
    _release(holder, holder.opened_since(serial), interrupted=interrupted)
    _release(holder, holder.opened_since(serial), report=False)


def _release(
    holder: Holder, entries: Iterable[Entry], *, interrupted: bool = False, report: bool = True
) -> None:
    amiss: list[_Amiss] = []
    for entry in entries:
        wrapper = entry.wrapper()
        if wrapper is None:
            continue
        reason = why_dirty(wrapper)
        if interrupted and reason is None and is_open(wrapper):
            reason = "an interruption"
        error = entry.close(wrapper, dirty=reason is not None)
        if not is_open(wrapper):
            _drop(entry, wrapper)
        if error is not None:
            amiss.append((entry.alias, "an error on closing", error))
        elif reason is not None:
            amiss.append((entry.alias, reason, None))
    if report and (amiss or guard.failures):
        with contextlib.suppress(Exception):  # a log handler of the project's, at the end of a task
            _log(holder, amiss)


def _drop(entry: Entry, wrapper: BaseDatabaseWrapper) -> None:
    entry.forget(wrapper)
    try:
        if connections[wrapper.alias] is wrapper:
            del connections[wrapper.alias]
    except ConnectionDoesNotExist:
        # The alias has left the settings, and this wrapper was never registered under it.
        pass


def _log(holder: Holder, amiss: list[_Amiss]) -> None:
    task = None if holder.task is None else task_name(holder.task)
    for alias, what, error in amiss:
        logger.warning(
            "task=%s thread=%s alias=%s ended with %s: its connection is closed and not used again",
            task,
            holder.thread_name,
            alias,
            what,
            exc_info=error,
        )
    while guard.failures:
        alias, thread_name, error = guard.failures.popleft()
        logger.warning(
            "thread=%s alias=%s closing failed when the thread ended",
            thread_name,
            alias,
            exc_info=error,
        )
