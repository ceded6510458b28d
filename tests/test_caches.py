"""A worker has one set of cache clients for its tasks, lets go of it, and never has its submitter's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, wait
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.cache import caches
from django.test import override_settings

from django_executors import ThreadPoolExecutor, connection_scope, release_connections

from .cache_clients import CacheServer, connection_of, use
from .gates import Gate
from .keeping import held_up, queued, results
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")

WORKERS = 4
IDLE = 0.3


@pytest.mark.usefixtures("watch_every_thread")
def test_a_thousand_tasks(cache_server: CacheServer) -> None:
    """Four workers have at most four clients, one each while they are busy, and none at the end."""
    made = cache_server.observer.made()
    pool = ThreadPoolExecutor(WORKERS)
    with held_up(pool, WORKERS):
        futures = [pool.submit(use, cache_server.alias, number) for number in range(1000)]
    most = 0
    while wait(futures, 0.01, ALL_COMPLETED).not_done:
        most = max(most, len(cache_server.clients()))
    assert not cache_server.left()
    assert 1 <= most <= WORKERS
    # The last of a queue are let go of, and may be needed once more.
    assert cache_server.observer.made() - made <= 3 * WORKERS
    used = {(thread, id(client)) for thread, client in results(futures)}
    assert len(used) <= 3 * WORKERS
    assert id(cache_server.object) not in {client for _, client in used}
    cache_server.assert_own_is_untouched()
    pool.shutdown()


def test_one_after_another(cache_server: CacheServer) -> None:
    """Tasks that come one by one leave no client when their futures are done."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for number in range(20):
            pool.submit(use, cache_server.alias, number).result(10)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_one_client_for_queued_tasks(cache_server: CacheServer) -> None:
    """Tasks that wait for one worker share its client and its connection, never the submitter's."""
    with ThreadPoolExecutor(1) as pool:
        tasks = [lambda: (connection_of(cache_server.alias), caches[cache_server.alias])] * 10
        found = results(queued(pool, *tasks))
        assert not cache_server.left()
    connections = {connection for connection, _ in found[:-1]}
    assert len(connections) == 1
    assert cache_server.own not in connections
    assert len({id(client) for _, client in found[:-1]}) == 1
    cache_server.assert_own_is_untouched()


@pytest.mark.parametrize("inherit_context", [True, False])
def test_without_a_context(inherit_context: bool, cache_server: CacheServer) -> None:
    """It is the same whether tasks inherit their submitter's context or not."""
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        tasks = [lambda: connection_of(cache_server.alias)] * 4
        found = results(queued(pool, *tasks))
        assert len(set(found[:-1])) == 1
        assert cache_server.own not in found
        assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_a_task_that_raises(cache_server: CacheServer) -> None:
    """A task's exception arrives when its client is closed."""

    def task() -> None:
        use(cache_server.alias)
        raise LookupError("of the task")

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(LookupError, match="of the task"):
            pool.submit(task).result(10)
        assert not cache_server.left()


class Interrupts:
    """Ends the task that reads it from a cache, with the rest of the answer still under way."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return interrupt, ()


def interrupt() -> None:
    raise SystemExit


def test_an_interrupted_task(cache_server: CacheServer) -> None:
    """The next task does not get the rest of the answer that an interrupted one was reading."""
    caches[cache_server.alias].set("stops", Interrupts())
    caches[cache_server.alias].set("long", "x" * 500_000)
    caches[cache_server.alias].set("number", 7)
    with ThreadPoolExecutor(1) as pool:
        tasks = [
            lambda: caches[cache_server.alias].get_many(["stops", "long"]),
            lambda: caches[cache_server.alias].get("number"),
        ]
        first, second = queued(pool, *tasks)
        assert isinstance(first.exception(10), SystemExit)
        assert second.result(10) == 7
        assert not cache_server.left()


def test_conn_max_idle(cache_server: CacheServer) -> None:
    """An idle worker keeps its client for that time, for its next task, and lets go without a task."""
    with ThreadPoolExecutor(1, conn_max_idle=IDLE) as pool:
        first = pool.submit(connection_of, cache_server.alias).result(10)
        assert len(cache_server.clients()) == 1
        for _ in range(4):  # each use begins that time anew
            wait_until(lambda: False, within=IDLE / 2)
            assert pool.submit(connection_of, cache_server.alias).result(10) == first
        assert len(cache_server.clients()) == 1
        assert not cache_server.left()


def test_tasks_that_use_no_cache(cache_server: CacheServer) -> None:
    """Tasks that use no cache do not prolong that time."""
    with ThreadPoolExecutor(1, conn_max_idle=IDLE) as pool:
        pool.submit(use, cache_server.alias).result(10)
        assert cache_server.clients()

        def clients_after_a_task() -> set[int]:
            pool.submit(int).result(10)
            return cache_server.clients()

        assert not wait_until(clients_after_a_task, lambda ids: not ids)


def test_release_connections(cache_server: CacheServer) -> None:
    """It closes a task's client; what is used after it, even by a name from before, is closed too."""
    held: list[int] = []

    def task() -> None:
        for client in (caches[cache_server.alias], caches[cache_server.alias]):
            client.set("number", 1)
            held.append(len(cache_server.clients()))
            release_connections()
            held.append(len(cache_server.left()))
            client.set("number", 2)
            held.append(len(cache_server.clients()))
        use(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result(10)
        assert not cache_server.left()
    assert held == [1, 0, 1] * 2


def test_release_connections_and_a_callback(cache_server: CacheServer, gate: Gate) -> None:
    """A callback that used the client before does not use, after it, one that nobody closes."""
    with ThreadPoolExecutor(1) as pool:
        used: list[object] = []

        def callback(_: object) -> None:
            used.append(use(cache_server.alias))

        first = pool.submit(gate)
        gate.wait_for()
        first.add_done_callback(callback)

        def release() -> None:
            use(cache_server.alias)
            release_connections()

        second = pool.submit(release)
        second.add_done_callback(callback)
        third = pool.submit(int)
        gate.open()
        results([first, second, third])
        assert len(used) == 2
        assert not cache_server.left()


def test_an_initializer_and_a_callback(cache_server: CacheServer, gate: Gate) -> None:
    """What an initializer or a callback made is let go before the worker waits."""
    done = threading.Event()

    def callback(_: object) -> None:
        use(cache_server.alias)
        done.set()

    pool = ThreadPoolExecutor(1, initializer=use, initargs=(cache_server.alias,))
    assert pool.submit(int).result(10) == 0
    assert not cache_server.left()
    future = pool.submit(gate)
    gate.wait_for()
    future.add_done_callback(callback)
    gate.open()
    assert done.wait(10)
    assert not cache_server.left()
    pool.shutdown()
    cache_server.assert_own_is_untouched()


def test_async_code_in_a_task(cache_server: CacheServer) -> None:
    """What async code in a task does with a cache, in the worker or in its helper, is let go too."""
    found: list[object] = []

    async def use_it() -> None:
        await caches[cache_server.alias].aset("number", 7)
        found.append(await caches[cache_server.alias].aget("number"))
        found.append(await sync_to_async(connection_of)(cache_server.alias) == cache_server.own)

    with ThreadPoolExecutor(1) as pool:
        for call in (lambda: asyncio.run(use_it()), async_to_sync(use_it)):
            pool.submit(call).result(10)
            assert not cache_server.left()
    assert found == [7, False] * 2
    cache_server.assert_own_is_untouched()


def test_async_code_that_asks_first(cache_server: CacheServer) -> None:
    """A client that only the helper thread of async code in a task has made is let go with the task."""

    async def use_it() -> None:
        await sync_to_async(use)(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            pool.submit(lambda: asyncio.run(use_it())).result(10)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_scopes_in_a_task(cache_server: CacheServer) -> None:
    """A scope in a task closes what was made in it; an older client of the task's goes on."""
    inside: list[object] = []

    def task(before: bool) -> None:
        first = connection_of(cache_server.alias) if before else None
        with connection_scope():
            inside.append(connection_of(cache_server.alias) == first)
        inside.append(len(cache_server.clients() if before else cache_server.left()))
        use(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        for before in (True, False):
            pool.submit(task, before).result(10)
            assert not cache_server.left()
    assert inside == [True, 1, False, 0]


@pytest.mark.parametrize("conn_max_idle", [0, 30])
def test_other_settings(conn_max_idle: float, cache_server: CacheServer) -> None:
    """A worker's next task follows settings that have changed, and no client of the old ones is left."""
    settings = caches.settings
    changed = {**settings, cache_server.alias: settings[cache_server.alias] | {"KEY_PREFIX": "changed"}}

    def prefix() -> object:
        use(cache_server.alias)
        return caches[cache_server.alias].key_prefix

    with ThreadPoolExecutor(1, conn_max_idle=conn_max_idle) as pool:
        assert pool.submit(prefix).result(10) == ""
        with override_settings(CACHES=changed):
            assert pool.submit(prefix).result(10) == "changed"
        with override_settings(CACHES={"default": settings["default"]}):
            assert pool.submit(use, "default").result(10)
        assert pool.submit(prefix).result(10) == ""
        if not conn_max_idle:
            assert not cache_server.left()
    assert not cache_server.left()
