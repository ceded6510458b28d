"""Server-side cursors that outlive their task, and are closed by whoever drops the last reference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from django_executors import ThreadPoolExecutor, all_connections

from .keeping import backend, queued, results
from .observers import PostgresObserver
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")

Kept = list[Iterator[Any]]


@pytest.fixture(autouse=True)
def rows() -> None:
    Entry.objects.bulk_create(Entry(name=str(number)) for number in range(10))
    connection.close()


def opens_a_cursor() -> Iterator[Any]:
    found = Entry.objects.order_by("pk").iterator(chunk_size=2)
    next(found)
    return found


@pytest.mark.parametrize("in_transaction", [False, True])
def test_closed_by_another_worker(
    in_transaction: bool, conn_max_age: int | None, postgres: PostgresObserver
) -> None:
    """A task's cursor that another worker closes, whatever that one's connection does, harms nobody."""
    kept: Kept = []
    tasks = 3000 if conn_max_age == 0 and not in_transaction else 300

    def leaves_one() -> int:
        kept[:] = [opens_a_cursor()]  # and closes the one that was there
        return 10

    def counts() -> int:
        if not in_transaction:
            return Entry.objects.count()
        with transaction.atomic():
            kept.clear()
            return Entry.objects.count()

    logging.disable()  # each is told of
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(counts if number % 3 else leaves_one) for number in range(tasks)]
        assert [future.result(60) for future in futures] == [10] * tasks
        kept.clear()
        assert all_connections() == ()
    logging.disable(logging.NOTSET)
    assert not postgres.left()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("tasks_behind", [0, 1])
def test_makes_its_connection_dirty(tasks_behind: int, caplog: pytest.LogCaptureFixture) -> None:
    """Such a connection is closed and not used again, with one warning that names the task."""

    def leaves_one() -> object:
        kept.append(opens_a_cursor())
        return backend()

    kept: Kept = []
    with ThreadPoolExecutor(1) as pool:
        used = results(queued(pool, leaves_one, *[backend] * tasks_behind))
        assert len(set(used)) == 1 + tasks_behind
        assert all_connections() == ()
    (record,) = caplog.records
    assert "leaves_one" in record.getMessage()
    assert "an open server-side cursor" in record.getMessage()


@pytest.mark.usefixtures("conn_max_age")
def test_one_that_is_closed_in_its_task(caplog: pytest.LogCaptureFixture) -> None:
    """A cursor that was read to its end, dropped or left by a `break` costs no connection."""

    def reads() -> object:
        assert len(list(Entry.objects.iterator(chunk_size=2))) == 10
        opens_a_cursor()
        for _ in Entry.objects.iterator(chunk_size=2):
            break
        return backend()

    with ThreadPoolExecutor(1) as pool:
        assert len(set(results(queued(pool, reads, reads, reads)))) == 1
    assert caplog.records == []


@pytest.mark.usefixtures("conn_max_age")
def test_used_by_the_thread_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may close a cursor, or a backend end a transaction, in the middle of the closing."""

    def close_after_use(self: Any) -> None:
        if self.connection is not None and not self.connection.closed:
            kept.clear()
            self.connection.rollback()
        close(self)

    def leaves_one() -> int:
        kept.append(opens_a_cursor())
        return 1

    kept: Kept = []
    close = DatabaseWrapper._close
    monkeypatch.setattr(DatabaseWrapper, "_close", close_after_use)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(leaves_one).result(10) == 1
        assert all_connections() == ()
