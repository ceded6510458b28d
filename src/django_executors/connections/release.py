"""Let go of what the calling thread holds: close, keep or reset. Errors are logged, never raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors.naming import log, task_name

from . import caches, sessions, thread_end
from .ledger import CLOSED, PARKED, Entry, Holder
from .wrapper import is_open, never_closes

logger = logging.getLogger(__name__)

#: alias, what was found, and the error if closing failed.
_Amiss = tuple[str, str, BaseException | None]


def settle(holder: Holder, *, keep: bool = False, interrupted: bool = False, since: int = 0) -> None:
    """Between two tasks of the calling worker: close all that it opened, or keep it.

    Whatever comes next meets wrappers as they were made: hooks, tenants and flags do not come back.

    Args:
        keep: there is more to do for this worker: what may be kept for it is kept.
        interrupted: the task ended by an exception that is no `Exception`, so that a query of which
            Django knows nothing may be under way.
        since: what was used since this serial number was drawn is the worker's, and what it has kept;
            the rest is of others who use the thread between its tasks. Cache clients are not kept then.
    """
    keep = keep and not interrupted
    amiss: list[_Amiss] = []
    if holder.caches:
        if keep and not since:
            caches.keep(holder)
        else:  # an interrupted client may have an answer under way, which the next task would get
            amiss = _let_go_of_caches(holder, since, forget=True)
    _release(holder, _used(holder, since), amiss, keep=keep, interrupted=interrupted)
    if amiss or thread_end.failures:
        _log(holder, amiss)
        # A log handler of the project's may have used the ORM meanwhile.
        _release(holder, _used(holder, since), [], keep=keep)
    holder.settled()


def _used(holder: Holder, since: int) -> list[Entry]:
    return [
        entry
        for entry in holder.copied()
        if max(entry.serial, entry.born) > since or entry.state is PARKED
    ]


def close_parked(holder: Holder) -> None:
    """Close what a worker keeps for its next task. Any thread may call this."""
    for entry in holder.copied():
        entry.close_parked()


def kept_until(holder: Holder, conn_max_idle: float) -> float | None:
    """Return until when the calling worker may keep what it holds without work; None: not at all."""
    if conn_max_idle <= 0 or is_limited(holder):
        return None
    until = [
        min(entry.kept_since + conn_max_idle, entry.expires_at)
        for entry in holder.copied()
        if entry.state is PARKED
    ]
    until += [
        client.kept_since + conn_max_idle for client in holder.caches if client.kept_since is not None
    ]
    return min(until, default=None)


def is_limited(holder: Holder) -> bool:
    """Tell whether this thread holds one of the connections that a ceiling allows."""
    return any(entry.permit is not None for entry in holder.copied())


def has_to_let_go(holder: Holder) -> bool:
    """Tell whether this holder, whose thread has nothing to do, still has something to close.

    Any thread may ask.
    """
    if holder.caches:
        return True
    for entry in holder.copied():
        wrapper = entry.wrapper()
        if wrapper is not None and entry.holds(wrapper) and not never_closes(wrapper):
            return True
    return False


def release_since(
    holder: Holder, serial: int, *, interrupted: bool = False, keep_wrappers: bool = False
) -> None:
    """Close what the calling thread opened since this serial number was drawn.

    Wrappers that are older stay, with the hooks and the tenant that they have.

    Args:
        keep_wrappers: the younger ones stay too.
    """
    born = None if keep_wrappers else serial
    # A worker's clients are its own until its task has ended: whoever holds one may go on using it.
    amiss = _let_go_of_caches(holder, serial, forget=holder.executor is None and not keep_wrappers)
    _release(holder, holder.opened_since(serial), amiss, born=born, interrupted=interrupted)
    if amiss or thread_end.failures:
        _log(holder, amiss)
        _release(holder, holder.opened_since(serial), [], born=born)


def _let_go_of_caches(holder: Holder, serial: int, *, forget: bool) -> list[_Amiss]:
    errors = caches.let_go(holder, since=serial, forget=forget)
    return [(alias, "an error on closing", error) for alias, error in errors]


def _release(
    holder: Holder,
    entries: Iterable[Entry],
    amiss: list[_Amiss],
    *,
    keep: bool = False,
    born: int | None = 0,
    interrupted: bool = False,
) -> None:
    """Do it, and add what went wrong.

    Args:
        born: wrappers that are younger are made anew, or put back; None: none is.
    """
    for entry in entries:
        wrapper = entry.wrapper()
        if wrapper is None or entry.is_shielded():
            continue
        reason = _why_dirty(entry, wrapper, interrupted=interrupted)
        if keep and reason is None and _keep(entry, wrapper):
            continue
        error = None
        if reason is not None or entry.holds(wrapper):
            error = entry.close(wrapper, dirty=reason is not None)
        elif entry.state is not CLOSED:  # closed behind Django's back
            entry.closed()
            entry.end_use()
        if not is_open(wrapper):  # or it is SQLite in memory
            if reason is not None or error is not None:
                _drop(entry, wrapper)
            elif born is not None and entry.born > born:
                _renew(entry, wrapper, keep=keep)
        if reason is not None or error is not None:
            amiss.append((entry.alias, "an error on closing" if error else str(reason), error))


def _why_dirty(entry: Entry, wrapper: BaseDatabaseWrapper, *, interrupted: bool) -> str | None:
    if entry.state is PARKED:
        return None
    reason = entry.why_dirty(wrapper)
    return "an interruption" if interrupted and reason is None and is_open(wrapper) else reason


def _keep(entry: Entry, wrapper: BaseDatabaseWrapper) -> bool:
    """Keep a clean connection for the next task, and tell whether that could be done."""
    if _is_wanted(entry):
        return False
    if entry.state is PARKED:
        if entry.session is not None:
            entry.made.put_back(wrapper)
    elif not sessions.park(entry, wrapper):
        return False
    elif _is_wanted(entry):  # since a moment ago
        entry.close_parked()
    return True


def _renew(entry: Entry, wrapper: BaseDatabaseWrapper, *, keep: bool) -> None:
    """Have whatever comes next meet a wrapper as it was made; a new one takes time."""
    if keep and entry.made is not None:
        entry.made.put_back(wrapper)
    else:
        _drop(entry, wrapper)


def _is_wanted(entry: Entry) -> bool:
    """Tell whether somebody waits for this connection's permit."""
    return entry.permit is not None and entry.permit.is_wanted()


def _drop(entry: Entry, wrapper: BaseDatabaseWrapper) -> None:
    entry.forget()
    # The alias may have left the settings: then it fails, and there is nothing to drop.
    with contextlib.suppress(Exception):
        if connections[wrapper.alias] is wrapper:
            del connections[wrapper.alias]


def _log(holder: Holder, amiss: list[_Amiss]) -> None:
    task = None if holder.task is None else task_name(holder.task)
    with contextlib.suppress(BaseException):  # a log handler of the project's, at the end of a task
        for alias, what, error in amiss:
            log(
                logger,
                logging.WARNING,
                "task=%(task)s thread=%(thread_name)s alias=%(alias)s ended with %(reason)s: its "
                "connection is closed and not used again",
                exc_info=error,
                task=task,
                thread_name=holder.thread_name,
                alias=alias,
                reason=what,
            )
        while thread_end.failures:
            alias, thread_name, error = thread_end.failures.popleft()
            log(
                logger,
                logging.WARNING,
                "thread=%(thread_name)s alias=%(alias)s closing failed when the thread ended",
                exc_info=error,
                thread_name=thread_name,
                alias=alias,
            )
