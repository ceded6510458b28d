"""A pool for each request, shut down in a `finally` that the raising path never enters.

`future.result()` raises before the `try` begins: the pool is not shut down, and the traceback of what
it raised holds the pool, its futures and its threads. The import line is enough.
"""

from __future__ import annotations

import pytest
from django.db import connection

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver

NAMES = ("first", "second", "third")


def key_of(name: str) -> int:
    return Entry.objects.get(name=name).pk


def look_up(*names: str) -> dict[str, int]:
    pool = ThreadPoolExecutor(max_workers=4)
    futures = [pool.submit(key_of, name) for name in names]
    keys = [future.result() for future in futures]
    try:
        return dict(zip(names, keys, strict=True))
    finally:
        pool.shutdown()


@pytest.fixture(autouse=True)
def entries() -> None:
    """Write what the requests look up, and leave no connection in this thread."""
    Entry.objects.bulk_create(Entry(name=name) for name in NAMES)
    connection.close()


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("old_import_line")
def test_before(postgres: PostgresObserver) -> None:
    """The standard pool leaks in both requests, although the first one shuts it down."""
    look_up(*NAMES)
    after_one = len(postgres.backends())
    assert after_one >= 1
    with pytest.raises(Entry.DoesNotExist):
        look_up(*NAMES, "missing")
    assert len(postgres.backends()) > after_one


@pytest.mark.usefixtures("conn_max_age")
def test_import_line(postgres: PostgresObserver) -> None:
    """Nothing is left of the request that returns, nor of the one that raises."""
    assert look_up(*NAMES).keys() == set(NAMES)
    assert all_connections() == ()
    with pytest.raises(Entry.DoesNotExist):
        look_up(*NAMES, "missing")
    assert all_connections() == ()
    assert not postgres.left()
