"""At CONN_MAX_AGE = 0 a task sees nothing of what the one before it set on Django's `connection`."""

from __future__ import annotations

import pytest
from django.db import connection, connections
from django.test import override_settings

from django_executors import ThreadPoolExecutor

from .keeping import backend, queued, results
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


def test_what_is_computed_is_computed_anew() -> None:
    """A task may set what Django computes once and keeps: the next one gets what is right."""
    right = connection.timezone_name

    def spoil() -> None:
        Entry.objects.count()
        vars(connections["default"]).update(timezone_name="Asia/Tokyo", pg_version=1)

    def look() -> tuple[str, bool, str]:
        with connection.cursor() as cursor:
            cursor.execute("SHOW TimeZone")
            (time_zone,) = cursor.fetchone()
        return connection.timezone_name, connection.pg_version > 1, time_zone

    with ThreadPoolExecutor(1) as pool:
        spoilt, *seen = results(queued(pool, spoil, look, look))
        assert (spoilt, *seen, pool.submit(look).result(10)) == (None, *[(right, True, right)] * 3)


def test_a_filled_query_log_costs_no_connection() -> None:
    """With DEBUG a wrapper notes its queries: that alone is no reason to close it, or to drop it."""
    with override_settings(DEBUG=True), ThreadPoolExecutor(1) as pool:
        futures = queued(pool, *[backend] * 10, lambda: len(connection.queries))
        *pids, noted = results(futures)
        assert len(set(pids)) == 1
        assert noted == 0
