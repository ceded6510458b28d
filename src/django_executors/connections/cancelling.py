"""Cancel on the server what threads still ask it, from outside of these threads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from typing import Any

from . import ledger
from .ledger import OPEN, Holder

logger = logging.getLogger(__name__)

#: For how many seconds a server is asked to cancel one query.
PATIENCE = 1.0


def cancel_queries(holders: Collection[Holder]) -> None:
    """Cancel what runs on the connections of these threads, which take no other task any more.

    One that is no longer under way when the server is told is not missed: nothing happens then. A
    connection of Django's own pool is not touched: by then it may be somebody else's.
    """
    for entry in ledger.all_entries():
        wrapper = entry.wrapper()
        if (
            wrapper is None
            or entry.state is not OPEN
            or entry.pooled
            or (entry.holder.works_for or entry.holder) not in holders
        ):
            continue
        try:
            _cancel(wrapper, wrapper.connection, entry.backend_pid)
        except Exception:  # it has ended meanwhile, or the server
            logger.debug("alias=%s its query cannot be cancelled", entry.alias, exc_info=True)


def _cancel(wrapper: Any, driver: Any, backend_pid: int | None) -> None:
    if hasattr(driver, "cancel_safe"):  # psycopg 3, on a connection of its own
        driver.cancel_safe(timeout=PATIENCE)
    elif hasattr(driver, "cancel"):  # psycopg 2
        driver.cancel()
    elif hasattr(driver, "interrupt"):  # SQLite
        driver.interrupt()
    elif wrapper.vendor == "mysql" and backend_pid is not None:
        connect: Any = wrapper.Database.connect
        with contextlib.closing(connect(**wrapper.get_connection_params())) as own:
            own.cursor().execute(f"KILL QUERY {backend_pid}")
