"""A task sees the world of the code that submitted it, leaves nothing behind, and has cache clients."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.test import override_settings
from django.urls import get_urlconf, set_urlconf
from django.utils import translation

from django_executors import ImmediateExecutor, ThreadPoolExecutor, connection_scope, release_connections
from tests.support.cache_clients import CacheServer, connection_of, use
from tests.support.gates import Gate
from tests.support.kept import queued, results
from tests.support.waiting import wait_until
from tests.support.worlds import DEFAULT, FRENCH, GERMAN, World, leave, world


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Each test begins and ends in the default world."""
    yield
    leave()


def test_as_they_were_at_submit(gate: Gate) -> None:
    """A task sees variables, language, time zone, URLconf and script prefix as they were at `submit`."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        GERMAN.enter()
        first = pool.submit(world)
        FRENCH.enter()
        second = pool.submit(world)
        leave()
        third = pool.submit(world)
        gate.open()
        assert [each.result(20) for each in (first, second, third)] == [GERMAN, FRENCH, DEFAULT]


@pytest.mark.parametrize("inherit_context", [True, False])
def test_nothing_gets_out(inherit_context: bool) -> None:
    """What a task sets reaches neither its submitter nor the next task."""
    GERMAN.enter()
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        pool.submit(FRENCH.enter).result(20)
        assert pool.submit(world).result(20) == (GERMAN if inherit_context else DEFAULT)
    assert world() == GERMAN


START = threading.Thread.start


def start_as_python_3_14_does(self: threading.Thread) -> None:
    self.run = functools.partial(contextvars.copy_context().run, self.run)  # type: ignore[method-assign]
    START(self)


def test_where_threads_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same where threads inherit a context."""
    monkeypatch.setattr(threading.Thread, "start", start_as_python_3_14_does)
    GERMAN.enter()
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1, inherit_context=False) as other:
        for executor, seen in ((pool, GERMAN), (other, DEFAULT), (ImmediateExecutor(), GERMAN)):
            assert executor.submit(world).result(20) == seen
            executor.submit(FRENCH.enter).result(20)
            assert executor.submit(world).result(20) == seen
        leave()
        assert pool.submit(world).result(20) == DEFAULT
    assert world() == DEFAULT


def test_override(gate: Gate) -> None:
    """Inside `override` a task gets what holds there, also when it runs after the end of the block."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        with translation.override("de"):
            inside = pool.submit(translation.gettext, "Monday")
            with translation.override(None):
                none = pool.submit(translation.get_language)
        outside = pool.submit(translation.gettext, "Monday")
        gate.open()
        assert results([inside, none, outside]) == ["Montag", None, "Monday"]


def test_nested() -> None:
    """A task that a task submits inherits from that task, as it is then."""

    def task(inner: ThreadPoolExecutor) -> list[World]:
        worlds = [inner.submit(world).result(20)]
        FRENCH.enter()
        worlds.append(inner.submit(world).result(20))
        leave()
        return [*worlds, inner.submit(world).result(20)]

    GERMAN.enter()
    with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:
        assert outer.submit(task, inner).result(20) == [GERMAN, FRENCH, DEFAULT]


def test_nested_after_the_only_change_is_undone() -> None:
    """Nor does a nested task get what its submitter once inherited and has undone since."""

    def task() -> str | None:
        set_urlconf(None)
        return inner.submit(get_urlconf).result(20)

    def submits() -> str | None:
        set_urlconf("urls.of.germans")
        return outer.submit(task).result(20)

    with ThreadPoolExecutor(1) as outer, ThreadPoolExecutor(1) as inner:
        # In a context in which nothing else was ever set.
        assert contextvars.Context().run(submits) is None


def test_initializer() -> None:
    """With inherit_context=False each task, in each worker, starts as the initializer left it."""
    all_in = threading.Barrier(3)

    def task() -> World:
        all_in.wait(20)
        found = world()
        FRENCH.enter()
        return found

    FRENCH.enter()
    with ThreadPoolExecutor(3, initializer=GERMAN.enter, inherit_context=False) as pool:
        for _ in range(2):
            assert results([pool.submit(task) for _ in range(3)]) == [GERMAN] * 3
    with ThreadPoolExecutor(1, initializer=GERMAN.enter) as pool:  # which inherits
        assert pool.submit(world).result(20) == FRENCH


def test_done_callback(gate: Gate) -> None:
    """A done-callback is in the worker's own world, and what it sets does not reach the next task."""
    with ThreadPoolExecutor(1) as pool:
        GERMAN.enter()
        future = pool.submit(gate)
        seen: list[World] = []
        future.add_done_callback(lambda _: seen.append(world()))
        future.add_done_callback(FRENCH.enter)
        leave()
        after = pool.submit(world)
        gate.open()
        assert after.result(20) == DEFAULT
        assert seen == [DEFAULT]


@pytest.mark.usefixtures("run_inline")
@pytest.mark.parametrize("make", [ImmediateExecutor, lambda: ThreadPoolExecutor(1)])
def test_in_the_callers_thread(make: Callable[[], Executor]) -> None:
    """Where a task runs in its caller's thread, it sees the caller's world, and does not change it."""
    GERMAN.enter()
    with make() as executor:
        executor.submit(FRENCH.enter).result(0)
        assert world() == GERMAN
        assert executor.submit(world).result(0) == GERMAN


@pytest.mark.usefixtures("run_inline")
def test_not_inherited_in_the_callers_thread() -> None:
    """A pool that does not inherit starts each task as its initializer, which runs once, left it."""
    ran: list[str] = []

    def initialize() -> None:
        ran.append("initializer")
        pool.submit(ran.append, "its task").result()
        GERMAN.enter()

    FRENCH.enter()
    with ThreadPoolExecutor(1, inherit_context=False) as pool:
        assert pool.submit(world).result() == DEFAULT
    with ThreadPoolExecutor(1, initializer=initialize, inherit_context=False) as pool:
        for _ in range(2):
            assert pool.submit(world).result() == GERMAN
            pool.submit(FRENCH.enter).result()
    assert ran == ["initializer", "its task"]
    assert world() == FRENCH


def test_overridden_settings() -> None:
    """Settings overridden between two submits are respected, and so is what is activated after that."""

    def submits() -> list[World]:
        worlds = [pool.submit(world).result(20)]
        with override_settings(LANGUAGE_CODE="it", TIME_ZONE="Europe/Rome"):
            worlds.append(pool.submit(world).result(20))
            FRENCH.enter()
            worlds.append(pool.submit(world).result(20))
        GERMAN.enter()
        return [*worlds, pool.submit(world).result(20)]

    with ThreadPoolExecutor(1) as pool:
        # In a context in which nothing was ever set.
        found = contextvars.Context().run(submits)
    italian = DEFAULT._replace(language="it", time_zone="Europe/Rome")
    assert found == [DEFAULT, italian, FRENCH, GERMAN]


# A worker has one set of cache clients for its tasks, lets go of it, and never has its submitter's.


@pytest.mark.parametrize("inherit_context", [True, False])
def test_one_client_for_queued_tasks(inherit_context: bool, cache_server: CacheServer) -> None:
    """Tasks that wait for one worker share its client and its connection, never the submitter's."""
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        tasks = [lambda: (connection_of(cache_server.alias), caches[cache_server.alias])] * 5
        found = results(queued(pool, *tasks))
        assert not cache_server.left()
    *kept, last = found  # the last of a queue is let go of, and may be another
    assert len({connection for connection, _ in kept}) == 1
    assert len({id(client) for _, client in kept}) == 1
    assert cache_server.own not in {connection for connection, _ in found}
    assert last[1] is not cache_server.object
    cache_server.assert_own_is_untouched()


def test_one_after_another(cache_server: CacheServer) -> None:
    """A task that comes alone leaves no client when its future is done, however it ended."""

    def fails() -> None:
        use(cache_server.alias)
        raise LookupError("of the task")

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(use, cache_server.alias).result(20)
            assert not cache_server.left()
            with pytest.raises(LookupError, match="of the task"):
                pool.submit(fails).result(20)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


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
        first, second = queued(
            pool,
            lambda: caches[cache_server.alias].get_many(["stops", "long"]),
            lambda: caches[cache_server.alias].get("number"),
        )
        assert isinstance(first.exception(20), SystemExit)
        assert second.result(20) == 7
        assert not cache_server.left()


def test_conn_max_idle(cache_server: CacheServer) -> None:
    """An idle worker keeps its client for that time, which tasks that use no cache do not prolong."""
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        first = pool.submit(connection_of, cache_server.alias).result(20)
        assert len(cache_server.clients()) == 1
        pool.submit(int).result(20)
        assert pool.submit(connection_of, cache_server.alias).result(20) == first
    assert not cache_server.left()  # at the pool's end
    with ThreadPoolExecutor(1, conn_max_idle=0.1) as pool:
        pool.submit(use, cache_server.alias).result(20)
        assert not cache_server.left(), "without a task"
        pool.submit(use, cache_server.alias).result(20)

        def clients_after_a_task() -> set[int]:
            pool.submit(int).result(20)
            return cache_server.clients()

        assert not wait_until(clients_after_a_task, lambda ids: not ids, within=20)


def test_release_connections(cache_server: CacheServer) -> None:
    """It closes a task's client; what is used after it, even by a name from before, is closed too."""
    held: list[int] = []

    def task() -> None:
        client = caches[cache_server.alias]
        client.set("number", 1)
        held.append(len(cache_server.clients()))
        release_connections()
        held.append(len(cache_server.left()))
        client.set("number", 2)
        use(cache_server.alias)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result(20)
        assert not cache_server.left()
    assert held == [1, 0]


def test_an_initializer_and_a_callback(cache_server: CacheServer, gate: Gate) -> None:
    """What an initializer or a callback made is let go before the worker waits."""
    done = threading.Event()

    def callback(_: object) -> None:
        use(cache_server.alias)
        done.set()

    with ThreadPoolExecutor(1, initializer=use, initargs=(cache_server.alias,)) as pool:
        assert pool.submit(int).result(20) == 0
        assert not cache_server.left()
        pool.submit(gate).add_done_callback(callback)
        gate.open()
        assert done.wait(20)
        assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def test_async_code_in_a_task(cache_server: CacheServer) -> None:
    """What async code in a task does with a cache, in the worker or in its helper, is let go too."""
    found: list[object] = []

    async def use_it() -> None:
        await caches[cache_server.alias].aset("number", 7)
        found.append(await caches[cache_server.alias].aget("number"))
        found.append(await sync_to_async(connection_of)(cache_server.alias) == cache_server.own)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, use_it()).result(20)
        assert not cache_server.left()
    assert found == [7, False]
    cache_server.assert_own_is_untouched()


def test_scopes_in_a_task(cache_server: CacheServer) -> None:
    """A scope in a task closes what was made in it; an older client of the task's goes on."""
    inside: list[object] = []

    def task(before: bool) -> None:
        first = connection_of(cache_server.alias) if before else None
        with connection_scope():
            inside.append(connection_of(cache_server.alias) == first)
        inside.append(len(cache_server.clients() if before else cache_server.left()))

    with ThreadPoolExecutor(1) as pool:
        for before in (True, False):
            pool.submit(task, before).result(20)
            assert not cache_server.left()
    assert inside == [True, 1, False, 0]


def test_other_settings() -> None:
    """A worker's next task follows settings of caches that have changed."""
    settings = caches.settings
    changed = {"default": settings["default"] | {"KEY_PREFIX": "changed"}}
    with ThreadPoolExecutor(1, conn_max_idle=60) as pool:
        assert pool.submit(lambda: caches["default"].key_prefix).result(20) == ""
        with override_settings(CACHES=changed):
            assert pool.submit(lambda: caches["default"].key_prefix).result(20) == "changed"
        assert pool.submit(lambda: caches["default"].key_prefix).result(20) == ""
