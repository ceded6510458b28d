"""A connection that its worker keeps from one task to the next.

While it is kept, the driver's connection is parked beside the wrapper, whose `connection` is None:
to Django, and to the code of the next task, this is a wrapper that has not connected yet. The first
query makes Django connect, and the hook on `connect` asks `resume` first. So nothing is spent on a
task that makes no query, and done-callbacks meet a fresh session as the next task does.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from . import asking, sessions
from .closing import close_driver
from .counting import ConnectionCounts
from .inspection import is_open, is_pooled
from .ledger import Entry, Kept
from .limits import Permit

#: A connection that was idle for less, and whose socket is silent, is taken to be alive
#: (HikariCP's bypass window, in seconds).
BYPASS_WINDOW = 0.5


def keep(entry: Entry, wrapper: BaseDatabaseWrapper, *, interrupted: bool) -> bool:
    """Park this connection for the next task, or return False: then it has to be closed.

    Only after a verified clean end: no transaction, no failed query, autocommit on as it was set.
    """
    now = time.monotonic()
    permit = entry.permit
    if (kept := entry.kept) is not None:  # no query has used it since
        return (
            entry.holds(wrapper)
            and now < kept.expires_at
            and (not kept.fresh or (entry.made is not None and entry.made.still_hold(wrapper)))
        )
    if (
        interrupted
        or (permit is not None and permit.ceiling.is_wanted())
        or not is_open(wrapper)
        or is_pooled(wrapper)
        or wrapper.errors_occurred
        or not wrapper.autocommit
        or entry.why_dirty(wrapper) is not None
    ):
        return False
    fresh = wrapper.settings_dict["CONN_MAX_AGE"] == 0
    if fresh:
        expires_at = entry.opened_at + sessions.MAX_RESET_AGE
    else:
        expires_at = float("inf") if wrapper.close_at is None else wrapper.close_at
    if now >= expires_at or not (_begin_reset(entry, wrapper) if fresh else _begin_rollback(wrapper)):
        return False
    entry.kept = kept = Kept(wrapper.connection, now, expires_at, fresh=fresh)
    wrapper.connection = None
    wrapper.queries_log.clear()
    if permit is not None:
        permit.reclaim = partial(_reclaim, permit, kept, entry.counts)
        if permit.ceiling.is_wanted():  # since a moment ago
            permit.reclaim()
    return True


def _reclaim(permit: Permit, kept: Kept, counts: ConnectionCounts | None) -> bool:
    """In any thread: close what no task has taken up, for the sake of its permit."""
    if not kept.claim():
        return False
    with contextlib.suppress(Exception):
        close_driver(kept.driver)
    if counts is not None:
        counts.add("closed")
    permit.give_back()
    return True


def resume(entry: Entry, wrapper: BaseDatabaseWrapper) -> bool:
    """Use the parked connection again, as if Django had just connected.

    Returns:
        False if it is no good any more, or was taken away for its permit: then it has been closed.

    Raises:
        Exception: what Django's `connect()` raised, or a receiver of `connection_created`.
    """
    kept = entry.take_kept()
    if kept is None:
        return False
    now = time.monotonic()
    if (
        now >= kept.expires_at
        or not (_finish_reset(entry, wrapper, kept) if kept.fresh else _finish_rollback(wrapper, kept))
        or not _seems_alive(wrapper, kept, now)
    ):
        wrapper.connection = kept.driver
        entry.close(wrapper, dirty=False)
        return False
    entry.note_use()
    entry.count("reset" if kept.fresh else "reused")
    if not kept.fresh:
        wrapper.connection = kept.driver
        return True
    # Django's own connect(): autocommit, role, time zone, `connection_created`. Only the socket is
    # there already. Attributes of the instance: its class stays Django's.
    vars(wrapper).update(get_connection_params=dict, get_new_connection=lambda params: kept.driver)
    try:
        type(wrapper).connect(wrapper)
    except BaseException:
        wrapper.connection = kept.driver  # for the hook to close, however far it came
        raise
    finally:
        del vars(wrapper)["get_connection_params"], vars(wrapper)["get_new_connection"]
    return True


def _begin_reset(entry: Entry, wrapper: BaseDatabaseWrapper) -> bool:
    snapshot = entry.snapshot
    try:
        if snapshot is None or not snapshot.still_holds(wrapper):
            return False
        snapshot.strategy.begin_reset(wrapper)
    except Exception:  # noqa: BLE001 - then it is closed
        return False
    return True


def _finish_reset(entry: Entry, wrapper: BaseDatabaseWrapper, kept: Kept) -> bool:
    assert entry.snapshot is not None
    try:
        entry.snapshot.strategy.finish_reset(kept.driver, kept.since + sessions.RESET_TIMEOUT)
    except OSError:  # no answer, or no server: that says nothing against resets
        return False
    except Exception as error:  # noqa: BLE001 - whatever it was, the connection is closed
        sessions.give_up(wrapper.alias, error)
        return False
    return True


def _begin_rollback(wrapper: BaseDatabaseWrapper) -> bool:
    """End a transaction that MySQL's driver cannot see, without waiting for the network."""
    if wrapper.vendor != "mysql":
        return True
    if not asking.can_ask(wrapper.connection):
        return False
    try:
        asking.send(wrapper.connection, b"ROLLBACK")
    except Exception:  # noqa: BLE001 - then it is closed
        return False
    return True


def _finish_rollback(wrapper: BaseDatabaseWrapper, kept: Kept) -> bool:
    if wrapper.vendor == "mysql":
        try:
            asking.receive(kept.driver, kept.since + sessions.RESET_TIMEOUT)
        except Exception:  # noqa: BLE001 - whatever it was, the connection is closed
            return False
    return True


def _seems_alive(wrapper: BaseDatabaseWrapper, kept: Kept, now: float) -> bool:
    """Look whether the server has hung up, by the socket; ask the server only if there is a doubt."""
    try:
        if now - kept.since < BYPASS_WINDOW and not _is_readable(kept.driver):
            return True
        if asking.can_ask(kept.driver):  # a firewall may have forgotten it: then there is no answer
            asking.send(kept.driver, b"SELECT 1")
            asking.receive(kept.driver, now + sessions.RESET_TIMEOUT)
            return True
        wrapper.connection = kept.driver
        return wrapper.is_usable()
    except Exception:  # noqa: BLE001 - a driver in no state to tell
        return False
    finally:
        wrapper.connection = None


def _is_readable(driver: Any) -> bool:
    """Tell whether the socket has something to read: the end, an error, a notification."""
    try:
        fileno = driver.fileno()
    except AttributeError:
        return not hasattr(driver, "in_transaction")  # SQLite has no socket; of others nothing is known
    return not asking.is_silent(fileno)
