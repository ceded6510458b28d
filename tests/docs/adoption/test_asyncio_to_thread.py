"""`asyncio.to_thread` on the event loop's default executor, which nobody made and nobody closes.

One line where the loop starts gives it an executor of ours. `sync_to_async(thread_sensitive=False)`
and `run_in_executor(None, …)` use the same one. Ordinary `sync_to_async` does not: there it is a scope.
"""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from django_executors import ThreadPoolExecutor, all_connections, connection_scope
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver


def count_entries(name: str) -> int:
    return Entry.objects.filter(name=name).count()


async def count_all(*names: str) -> list[int]:
    return await asyncio.gather(*(asyncio.to_thread(count_entries, name) for name in names))


async def count_all_on_our_executor(*names: str) -> list[int]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    return await count_all(*names)


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("leaked_before")
def test_before(postgres: PostgresObserver) -> None:
    """The loop has ended and joined its threads; their connections are still open."""
    assert asyncio.run(count_all("first", "second", "third")) == [0, 0, 0]
    assert postgres.backends()


@pytest.mark.usefixtures("conn_max_age")
def test_line_of_the_docs(postgres: PostgresObserver) -> None:
    """Nothing is left when the awaits have returned, while the loop still runs."""

    async def main() -> None:
        assert await count_all_on_our_executor("first", "second", "third") == [0, 0, 0]
        assert all_connections() == ()
        assert not postgres.left()

    asyncio.run(main())


@pytest.mark.usefixtures("conn_max_age")
def test_ordinary_sync_to_async(postgres: PostgresObserver) -> None:
    """In asgiref's own thread a function leaves its connection, and in a scope it leaves nothing."""

    async def main() -> None:
        assert await sync_to_async(count_entries)("first") == 0
        assert len(postgres.backends()) == 1
        await sync_to_async(connections.close_all)()
        assert await sync_to_async(connection_scope(count_entries))("second") == 0
        assert all_connections() == ()
        assert not postgres.left()

    asyncio.run(main())
