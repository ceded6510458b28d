"""Let go of what the calling thread holds. Errors on the way are logged, never raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import caching, guard, keeping
from .holder import Holder
from .inspection import is_open, never_closes
from .ledger import Entry, give_back_unused
from .naming import task_name

logger = logging.getLogger(__name__)

#: alias, what was found, and the error if closing failed.
_Amiss = tuple[str, str, BaseException | None]


def release(holder: Holder, *, keep: bool = False, interrupted: bool = False) -> None:
    """Close all that the calling worker opened, or keep it, and drop wrappers that were changed.

    Whatever comes next makes new ones: hooks, tenants and flags left on the old do not come back.

    Args:
        keep: there is more to do for this worker: what may be kept for it is kept.
        interrupted: the task ended by an exception that is no `Exception`, so that a query of which
            Django knows nothing may be under way.
    """
    if not (holder.entries or holder.caches or guard.failures):
        return
    amiss: list[_Amiss] = []
    if keep and not interrupted:
        caching.keep(holder)
    else:  # an interrupted client may have an answer under way, which the next task would get
        amiss = _let_go_of_caches(holder, 0, forget=True)
    if _release(holder, holder.copied(), amiss, keep=keep, interrupted=interrupted):
        # A log handler of the project's may have used the ORM meanwhile.
        _release(holder, holder.copied(), [], keep=keep, report=False)


def kept_until(holder: Holder, conn_max_idle: float) -> float | None:
    """Return until when the calling worker may keep what it holds without work; None: not at all."""
    if conn_max_idle <= 0 or is_limited(holder):
        return None
    kept = [entry.kept for entry in holder.copied() if entry.kept is not None]
    until = [min(one.since + conn_max_idle, one.expires_at) for one in kept]
    until += [since + conn_max_idle for since in caching.kept_since(holder)]
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
    born = float("inf") if keep_wrappers else serial
    # A worker's clients are its own until its task has ended: whoever holds one may go on using it.
    amiss = _let_go_of_caches(holder, serial, forget=holder.executor is None and not keep_wrappers)
    if _release(holder, holder.opened_since(serial), amiss, born=born, interrupted=interrupted):
        _release(holder, holder.opened_since(serial), [], born=born, report=False)


def _let_go_of_caches(holder: Holder, serial: int, *, forget: bool) -> list[_Amiss]:
    errors = caching.let_go(holder, since=serial, forget=forget)
    return [(f"{alias} (a cache)", "an error on closing", error) for alias, error in errors]


def _release(
    holder: Holder,
    entries: Iterable[Entry],
    amiss: list[_Amiss],
    *,
    keep: bool = False,
    born: float = 0,
    interrupted: bool = False,
    report: bool = True,
) -> bool:
    """Do it, and tell whether anything was logged.

    Args:
        amiss: what went wrong already.
        born: wrappers that are younger are dropped, if anything was left on them.
    """
    for entry in entries:
        wrapper = entry.wrapper()
        if wrapper is None or entry.is_borrowed():
            continue
        if keep and keeping.keep(entry, wrapper, interrupted=interrupted):
            continue
        reason = entry.why_dirty(wrapper)
        if interrupted and reason is None and is_open(wrapper):
            reason = "an interruption"
        error = None
        if reason is not None or entry.holds(wrapper):
            error = entry.close(wrapper, dirty=reason is not None)
        spoilt = reason is not None or error is not None
        if not is_open(wrapper) and (spoilt or (entry.born > born and not _is_as_made(entry, wrapper))):
            _drop(entry, wrapper)
        if error is not None:
            amiss.append((entry.alias, "an error on closing", error))
        elif reason is not None:
            amiss.append((entry.alias, reason, None))
    give_back_unused(holder)
    if not report or not (amiss or guard.failures):
        return False
    with contextlib.suppress(BaseException):  # a log handler of the project's, at the end of a task
        _log(holder, amiss)
    return True


def _is_as_made(entry: Entry, wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether the next task may use this wrapper, closed as it is: a new one takes time."""
    if entry.made is None or not entry.made.still_hold(wrapper):
        return False
    wrapper.queries_log.clear()
    return True


def _drop(entry: Entry, wrapper: BaseDatabaseWrapper) -> None:
    entry.forget()
    # The alias may have left the settings: then it fails, and there is nothing to drop.
    with contextlib.suppress(Exception):
        if connections[wrapper.alias] is wrapper:
            del connections[wrapper.alias]


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
