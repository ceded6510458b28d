"""The usual recipe: `connection.close()` in a `finally`, in each function that a pool runs.

It knows `default` only, and a done-callback runs after it. The import line is enough, and the
`finally` may go.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from django.db import connection

from django_executors import ThreadPoolExecutor, all_connections
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver


def copy_entries() -> int:
    try:
        names = Entry.objects.using("other").values_list("name", flat=True)
        return len(Entry.objects.bulk_create(Entry(name=name) for name in names))
    finally:
        connection.close()


def copy_entries_then(done: threading.Event) -> Future[int]:
    go_on = threading.Event()

    def log(future: Future[int]) -> None:
        Entry.objects.create(name=f"{future.result()} copied")
        done.set()

    def copy() -> int:
        assert go_on.wait(10)
        return copy_entries()

    future = ThreadPoolExecutor(1).submit(copy)
    future.add_done_callback(log)
    go_on.set()
    return future


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("old_import_line")
def test_before(postgres: PostgresObserver) -> None:
    """The second alias is left open, and so is what the callback opened."""
    done = threading.Event()
    assert copy_entries_then(done).result(10) == 0
    assert done.wait(10)
    assert postgres.backends("other")
    assert postgres.backends("app")


@pytest.mark.usefixtures("conn_max_age")
def test_import_line(postgres: PostgresObserver) -> None:
    """Nothing is left, on either alias, of the task or of its callback."""
    done = threading.Event()
    assert copy_entries_then(done).result(10) == 0
    assert done.wait(10)
    assert not postgres.left("other")
    assert not postgres.left("app")
    assert all_connections() == ()
