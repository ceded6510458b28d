"""Everything of a session that a task could leave to the next one, in values that compare."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connection, connections, transaction
from django.utils.functional import cached_property
from psycopg.rows import tuple_row

from tests.projects.testapp.models import Entry

# Left out is what DESIGN.md lists as known: a custom setting that was set is empty, not NULL.
ON_THE_SERVER = {
    "settings": "SELECT name, setting, reset_val, source FROM pg_settings"
    " WHERE name <> 'TimeZone' ORDER BY 1",
    "time zone": "SELECT current_setting('TimeZone')",  # its source depends on the machine's own zone
    "tenant": "SELECT nullif(current_setting('app.tenant', true), '')",
    "users": "SELECT current_user, session_user, current_schemas(false)",
    "prepared": "SELECT name FROM pg_prepared_statements",
    "cursors": "SELECT name FROM pg_cursors",
    "channels": "SELECT * FROM pg_listening_channels()",
    "locks": "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "temporary": "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
}
IN_THE_DRIVER = (
    *("autocommit", "isolation_level", "read_only", "deferrable", "row_factory", "cursor_factory"),
    *("server_cursor_factory", "prepare_threshold", "prepared_max"),
    *("_notice_handlers", "_notify_handlers", "_pipeline"),
)
# Counters that only make names, a clock, the thread's number.
BY_NATURE = {"_named_cursor_idx", "_thread_ident", "close_at", "connection", "savepoint_state"}


def session_state() -> dict[str, Any]:
    """Describe the session that the calling thread gets, connecting if need be."""
    wrapper = connections["default"]
    found: dict[str, Any] = {
        "before connecting": [*wrapper.execute_wrappers, wrapper.force_debug_cursor, _extra(wrapper)],
        "queries": len(wrapper.queries_log),
    }
    with connection.cursor() as cursor:
        for name, sql in ON_THE_SERVER.items():
            found[name] = cursor.execute(sql).fetchall()
    found["wrapper"] = _flags(wrapper)
    found["computed"] = wrapper.timezone_name, wrapper.pg_version
    found["driver"] = _driver(wrapper.connection)
    found["sequences"] = _sequences()
    with transaction.atomic():
        entry = Entry.objects.create(name="written")
        found["read back"] = Entry.objects.get(pk=entry.pk).name
        entry.delete()
        with connection.cursor() as cursor:
            sql = "SELECT current_setting('transaction_isolation'), %s, %s"
            found["in a transaction"] = cursor.execute(sql, ["text", 1.5]).fetchone()
    found["prepares"] = _prepares(wrapper.connection)
    found["notifications"] = [note.payload for note in wrapper.connection.notifies(timeout=0)]
    return found


def _flags(wrapper: Any) -> dict[str, Any]:
    plain = (bool, int, str, list, type(None))
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(wrapper).items()
        if isinstance(value, plain)
        and name not in BY_NATURE
        and not isinstance(getattr(type(wrapper), name, None), cached_property)
    }


def _extra(wrapper: Any) -> list[str]:
    """Name what no wrapper has of itself."""
    return [name for name in vars(wrapper) if name.startswith("mine_")]


def _driver(driver: Any) -> dict[str, Any]:
    maps = vars(driver.adapters)
    info = driver.info
    return {
        "attributes": {name: getattr(driver, name) for name in IN_THE_DRIVER},
        "info": [info.transaction_status, info.pipeline_status, info.encoding],
        "adapters": [maps[name] for name in ("_dumpers", "_dumpers_by_oid", "_loaders")],
        "types": sorted(found.name for found in driver.adapters.types),
    }


def _prepares(driver: Any) -> int:
    """Have psycopg prepare one statement, and count what is prepared then."""
    driver.prepare_threshold = 0
    for _ in range(2):
        psycopg.Cursor(driver).execute("SELECT 'prepared'")
    driver.prepare_threshold = None
    cursor = psycopg.Cursor(driver, row_factory=tuple_row)
    count: int = cursor.execute("SELECT count(*) FROM pg_prepared_statements").fetchall()[0][0]
    return count


def _sequences() -> Any:
    try:
        with connection.cursor() as cursor:
            return cursor.execute("SELECT lastval()").fetchone()
    except Exception as error:
        return type(error).__name__
