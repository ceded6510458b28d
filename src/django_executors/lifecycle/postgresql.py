"""Fresh sessions on PostgreSQL: Django's own wrappers, on psycopg 3.

What `DISCARD ALL` stands for, in one round trip: the statement itself refuses to run together with
others. Sent through psycopg's documented `PGconn`, because its cursors wait without a limit. That
goes behind the back of psycopg's cache of prepared statements: so only where that is off, as it is
under Django unless OPTIONS says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .asking import locked, results, send
from .attributes import Attributes
from .sessions import RESET_TIMEOUT

_RESET = (
    "CLOSE ALL;"
    "SET SESSION AUTHORIZATION DEFAULT;"
    "RESET ROLE;"
    "RESET ALL;"
    "DEALLOCATE ALL;"
    "UNLISTEN *;"
    "SELECT pg_advisory_unlock_all();"
    "DISCARD PLANS;"
    "DISCARD TEMP;"
    "DISCARD SEQUENCES;"
)
# What psycopg changes by itself: made on demand, or «this map is shared with its template».
_DERIVED = frozenset(
    {"_adapters", "_begin_statement", "_own_dumpers", "_own_dumpers_by_oid", "_own_loaders"}
)


class PostgreSQLSessions:
    """Django's `postgresql` and `postgis` wrappers."""

    wrapper_classes: Collection[str] = (
        "django.db.backends.postgresql.base.DatabaseWrapper",
        "django.contrib.gis.db.backends.postgis.base.DatabaseWrapper",
    )

    def remember(self, wrapper: BaseDatabaseWrapper) -> Any | None:
        driver: Any = wrapper.connection
        if getattr(driver, "pgconn", None) is None or driver.prepare_threshold is not None:
            return None
        pgconn = driver.pgconn
        asked = time.monotonic()
        with locked(driver, RESET_TIMEOUT):
            # No timeout: an answer that arrives late would be read by the task's first query.
            told = pgconn.exec_(b"SELECT pg_backend_pid()")
        if time.monotonic() - asked > RESET_TIMEOUT:
            raise TimeoutError("no reset would be answered in time")
        if int(told.get_value(0, 0)) != pgconn.backend_pid:
            return None  # a pooler: a reset would hit other clients
        return _Setup(driver)

    def is_unchanged(self, wrapper: BaseDatabaseWrapper, memory: Any) -> bool:
        setup: _Setup = memory
        return setup.still_holds(wrapper.connection)

    def begin_reset(self, wrapper: BaseDatabaseWrapper) -> None:
        send(wrapper.connection, _reset_sql(wrapper.timezone_name))

    def finish_reset(self, driver: Any, deadline: float) -> None:
        try:
            with locked(driver, deadline - time.monotonic()):
                results(driver.pgconn, deadline)
                while driver.pgconn.notifies():
                    pass  # it came for the task before; psycopg has not read it
        except driver.OperationalError as error:
            raise ConnectionError(str(error)) from error


class _Setup:
    """What can be set on a psycopg connection, as it was right after connecting."""

    __slots__ = ("_adapters", "_attributes", "_handlers", "_prepared", "_types")

    def __init__(self, driver: Any) -> None:
        # A copy makes the driver's own map replace, from now on, what is changed in it.
        type(driver.adapters)(driver.adapters)
        self._adapters = Attributes(driver.adapters, _DERIVED)
        self._attributes = Attributes(driver, _DERIVED)
        self._types = Attributes(driver.adapters.types, _DERIVED)
        self._prepared = Attributes(driver._prepared, _DERIVED)
        self._handlers = driver.pgconn.notice_handler, driver.pgconn.notify_handler

    def still_holds(self, driver: Any) -> bool:
        return (
            self._attributes.still_hold(driver)
            and self._adapters.still_hold(driver.adapters)
            and self._handlers == (driver.pgconn.notice_handler, driver.pgconn.notify_handler)
            and self._types.still_hold(driver.adapters.types)
            and self._prepared.still_hold(driver._prepared)
        )


@lru_cache
def _reset_sql(time_zone: str) -> bytes:
    """Return the statements, with the time zone that Django would set in a round trip of its own."""
    quoted = time_zone.replace("'", "''")
    return f"{_RESET}SET TimeZone TO '{quoted}'".encode() if time_zone else _RESET.encode()
