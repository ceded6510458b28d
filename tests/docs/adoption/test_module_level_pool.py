"""A pool that lives as long as the process, whose tasks call `close_old_connections` themselves.

That closes nothing while CONN_MAX_AGE has not run out, so each idle worker keeps a connection. The
import line is enough; the calls do no harm and may go.
"""

from __future__ import annotations

import sys

import pytest
from django.db import close_old_connections, connections

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="entries")


def count_entries(name: str) -> int:
    close_old_connections()
    try:
        return Entry.objects.filter(name=name).count()
    finally:
        close_old_connections()


def counts(*names: str) -> list[int]:
    return list(pool.map(count_entries, names))


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("old_import_line")
def test_before(postgres: PostgresObserver, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the standard pool, a worker that has nothing to do keeps its connection until max age."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 600)
    monkeypatch.setattr(sys.modules[__name__], "pool", ThreadPoolExecutor(max_workers=4))
    assert counts("first", "second", "third") == [0, 0, 0]
    assert postgres.backends()


@pytest.mark.usefixtures("conn_max_age")
def test_import_line(postgres: PostgresObserver) -> None:
    """Workers that live on hold nothing between their tasks."""
    for _ in range(3):
        assert counts("first", "second", "third") == [0, 0, 0]
        assert all_connections() == ()
        assert not postgres.left()
