"""What can be seen of a connection, without a round trip to its server but where it says so."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

# libpq's PGTransactionStatusType, by number: no driver is imported here.
_BROKEN = "a broken connection"
_TRANSACTION_STATES = (
    None,
    "a query in flight",
    "an open transaction",
    "a failed transaction",
    _BROKEN,
)


def is_open(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether this wrapper has a connection, as Django sees it."""
    return wrapper.connection is not None and not wrapper.closed_in_transaction


def never_closes(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether `close()` does nothing: SQLite in memory, which would be lost."""
    return wrapper.vendor == "sqlite" and wrapper.is_in_memory_db()  # type: ignore[attr-defined]


def is_pooled(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether this wrapper borrows its connection from Django's own pool."""
    return bool(wrapper.settings_dict["OPTIONS"].get("pool"))


def most_pooled(wrapper: BaseDatabaseWrapper) -> int | None:
    """Return how many connections Django's own pool gives out at most; None if there is no such pool."""
    if wrapper.vendor != "postgresql" or not is_pooled(wrapper):
        return None
    options: Any = wrapper.settings_dict["OPTIONS"]["pool"]
    options = {} if options is True else options
    if not isinstance(options, Mapping):
        return None
    most = options.get("max_size") or options.get("min_size", 4)  # as psycopg_pool has it
    return most if isinstance(most, int) else None


def backend_pid(wrapper: BaseDatabaseWrapper) -> int | None:
    """Return the number by which the server knows this connection, where its driver tells."""
    driver: Any = wrapper.connection
    try:
        if wrapper.vendor == "postgresql":
            return int(driver.info.backend_pid)
        if wrapper.vendor == "mysql":
            return int(driver.thread_id())
    except Exception:  # noqa: BLE001 - a number for a report: whatever a driver raises, there is none
        return None
    return None


def open_transaction(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say what transaction is open, or None. MySQL's driver cannot see one that was begun by hand."""
    if wrapper.in_atomic_block:
        return "an open atomic block"
    driver: Any = wrapper.connection
    if driver is None:
        return None
    if wrapper.vendor == "postgresql":
        return _transaction_state(driver)
    if wrapper.vendor == "sqlite" and driver.in_transaction:
        return "an open transaction"
    return None


def has_ended(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether the server has gone away. MySQL's driver cannot tell: after an error, it is asked."""
    driver: Any = wrapper.connection
    if driver is None:
        return False
    if wrapper.vendor == "mysql":
        return wrapper.errors_occurred and not wrapper.is_usable()
    return wrapper.vendor == "postgresql" and _transaction_state(driver) == _BROKEN


def _transaction_state(driver: Any) -> str | None:
    libpq = driver.pgconn if hasattr(driver, "pgconn") else driver.info  # psycopg 3, psycopg2
    return _TRANSACTION_STATES[libpq.transaction_status]


def uncommitted(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say what would be lost by closing now, or may be, where the driver cannot tell; or None."""
    transaction = open_transaction(wrapper)
    if transaction == _BROKEN:
        return None
    if transaction is None and wrapper.vendor == "mysql" and not wrapper.autocommit:
        return "autocommit off"
    return transaction


def is_open_on_server(cursor: weakref.ref[Any]) -> bool:
    """Return whether this is a server-side cursor, by its name, still referenced and open."""
    found = cursor()
    return found is not None and getattr(found, "name", None) is not None and not found.closed


def why_dirty(wrapper: BaseDatabaseWrapper) -> str | None:
    """Say why this connection must not be used again, or None if nothing speaks against it."""
    try:
        if (transaction := open_transaction(wrapper)) is not None:
            return transaction
        if wrapper.connection is None:
            return None
        if wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
            return "autocommit changed"
        driver: Any = wrapper.connection
        if hasattr(driver, "pgconn"):
            if driver.pgconn.pipeline_status:
                return "an open pipeline"
            # Held by a generator that somebody has suspended: the next query would wait for it.
            if driver.lock.locked():
                return "a generator in progress"
    except Exception:  # noqa: BLE001 - a driver that cannot tell
        return "an unknown state"
    return None
