"""Cancel on the server what threads still ask it, from outside of these threads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from typing import Any

from django_executors.clock import Clock

from . import ledger
from .ledger import OPEN, Holder

logger = logging.getLogger(__name__)

#: The seconds within which a server is told to cancel one query.
PATIENCE = 1.0
# psycopg's TransactionStatus, by number: no driver is imported here.
_ACTIVE = 1


def cancel_queries(holders: Collection[Holder], deadline: float) -> bool:
    """Cancel what runs on the connections of these threads, which take no other task any more.

    One that is no longer under way when the server is told is not missed: nothing happens then. A
    connection of Django's own pool is not touched: by then it may be somebody else's.

    Args:
        deadline: by `Clock`: after it no server is told.

    Returns:
        Whether one of them has a connection, or is about to, over which it may query again.
    """
    found = any(entry.is_connecting for holder in holders for entry in holder.copied())
    for entry in ledger.all_entries():
        wrapper = entry.wrapper()
        if (
            wrapper is None
            or entry.state is not OPEN
            or entry.pooled
            or entry.holder.worker not in holders
        ):
            continue
        found = True
        if (left := deadline - Clock.monotonic()) <= 0:
            break
        try:
            if _may_run(wrapper.connection):
                _cancel(wrapper, wrapper.connection, entry.backend_pid, min(left, PATIENCE))
        except Exception:  # it has ended meanwhile, or the server
            logger.debug("alias=%s its query cannot be cancelled", entry.alias, exc_info=True)
    return found


def _may_run(driver: Any) -> bool:
    """Tell whether a query runs there; where the driver does not tell, one may."""
    pgconn = getattr(driver, "pgconn", None)
    return pgconn is None or bool(pgconn.transaction_status == _ACTIVE)


def _cancel(wrapper: Any, driver: Any, backend_pid: int | None, seconds: float) -> None:
    if hasattr(driver, "cancel_safe"):  # psycopg 3, on a connection of its own
        driver.cancel_safe(timeout=seconds)
    elif hasattr(driver, "cancel"):  # psycopg 2
        driver.cancel()
    elif hasattr(driver, "interrupt"):  # SQLite
        driver.interrupt()
    elif wrapper.vendor == "mysql" and backend_pid is not None:
        connect: Any = wrapper.Database.connect
        # In whole seconds, as both drivers have it.
        limits = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), 1)
        with contextlib.closing(connect(**{**wrapper.get_connection_params(), **limits})) as own:
            own.cursor().execute(f"KILL QUERY {backend_pid}")
