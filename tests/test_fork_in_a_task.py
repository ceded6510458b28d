"""What a task has open when it forks is its own; the child opens its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from django.core.cache import caches
from django.db import connection, connections, transaction

from django_executors import ThreadPoolExecutor, all_connections
from django_executors.testing import drain

from .cache_clients import CacheServer, connection_of, use
from .forking import exit_code, fork, quiet_fork, server_pid
from .observers import PostgresObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("alias", ["default", "mariadb"])
def test_child_connects_anew(
    alias: str, pool: ThreadPoolExecutor, request: pytest.FixtureRequest
) -> None:
    """In a transaction too: the child's queries go to a session of its own, in none."""
    if alias == "mariadb":
        request.getfixturevalue("mariadb")

    def task() -> tuple[object, ...]:
        with transaction.atomic(using=alias):
            Entry.objects.using(alias).create(name="of the parent")
            before = server_pid(alias)

            def child() -> None:
                assert all_connections() == ()
                with transaction.atomic(using=alias):
                    assert not transaction.get_autocommit(using=alias)
                    assert server_pid(alias) != before
                assert not Entry.objects.using(alias).exists()
                with transaction.atomic(using=alias):
                    Entry.objects.using(alias).create(name="of the child")
                (info,) = all_connections()
                assert info.executor is None
                assert pool.submit(Entry.objects.using(alias).count).result(10) == 1
                drain()

            return fork(child), server_pid(alias) == before, Entry.objects.using(alias).count()

    assert pool.submit(task).result(30) == ((0, ""), True, 2)
    assert Entry.objects.using(alias).count() == 2


def test_child_leaves_the_atomic_block(pool: ThreadPoolExecutor) -> None:
    """A child that comes back through `atomic` and an open cursor disturbs the parent's in nothing."""

    def task() -> tuple[int, int]:
        with transaction.atomic(), connection.cursor() as cursor:
            Entry.objects.create(name="one")
            cursor.execute("SELECT generate_series(1, 3)")
            rows = Entry.objects.order_by("name").iterator()
            next(rows)
            pid = quiet_fork()
            if pid:
                code = exit_code(pid)
                assert [number for (number,) in cursor.fetchall()] == [1, 2, 3]
                assert list(rows) == []
        return code if pid else 0, Entry.objects.count()

    assert pool.submit(task).result(30) == (0, 1)


def test_pool_of_django(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """The child gets no connection out of the parent's pool: Django makes it one of its own."""

    def backend() -> int:
        with connections["pooled"].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid: int = cursor.fetchone()[0]
            return pid

    pool.submit(backend).result(10)
    of_parent = wait_until(lambda: postgres.backends("pooled"), lambda found: len(found) == 4)

    def child() -> None:
        assert pool.submit(backend).result(10) not in of_parent

    assert fork(child) == (0, "")
    assert [pool.submit(backend).result(10) in of_parent for _ in range(4)] == [True] * 4


def test_cache_clients(pool: ThreadPoolExecutor, cache_server: CacheServer) -> None:
    """In the child of a worker, a cache has a new client, and the parent's goes on as it was."""
    alias = cache_server.alias

    def task() -> tuple[object, ...]:
        client, number = caches[alias], connection_of(alias)

        def child() -> None:
            assert caches[alias] is not client
            assert connection_of(alias) != number
            pool.submit(use, alias).result(10)

        return fork(child), caches[alias] is client, connection_of(alias) == number

    assert pool.submit(task).result(30) == ((0, ""), True, True)
    cache_server.assert_own_is_untouched()


def test_async_orm_before(pool: ThreadPoolExecutor) -> None:
    """A task that has used Django's ORM in async code may do so in its child."""

    async def count() -> int:
        return await Entry.objects.acount()

    def task() -> tuple[object, ...]:
        assert asyncio.run(count()) == 0
        pid = quiet_fork()
        return pid, asyncio.run(count())

    pid, counted = pool.submit(task).result(30)
    assert (exit_code(pid), counted) == (0, 0)  # type: ignore[arg-type]
