"""Cache clients where no worker is: in scopes, in threads that end, in the caller's, in a fork."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import caches

from django_executors import ImmediateExecutor, ThreadPoolExecutor, connection_scope
from django_executors.lifecycle.holder import current_holder
from django_executors.testing import run_inline

from .cache_clients import CacheServer, close_own, connection_of, use
from .gates import Gate
from .test_fork import fork
from .test_thread_ends import run
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")
with_app = pytest.mark.usefixtures("watch_every_thread")
#: django-redis has one pool for all threads but workers, and no thread may close it.
WITH_SOCKETS_OF_THEIR_OWN = ["redis", "memcached"]
of_each_thread = pytest.mark.parametrize("cache_server", WITH_SOCKETS_OF_THEIR_OWN, indirect=True)


@of_each_thread
@pytest.mark.parametrize("app", [True, False])
def test_a_scope_in_a_thread(
    app: bool, cache_server: CacheServer, request: pytest.FixtureRequest
) -> None:
    """A scope in a plain thread closes what was made inside, and leaves older clients alone."""
    if app:
        request.getfixturevalue("watch_every_thread")
    found: list[object] = []

    def target() -> None:
        with connection_scope():
            outer = connection_of(cache_server.alias)
            with connection_scope():
                found.append(connection_of(cache_server.alias) == outer)
            found.append(connection_of(cache_server.alias) == outer)
        found.append(cache_server.left())
        with connection_scope():
            with connection_scope():
                use(cache_server.alias)
            found.append(cache_server.left())
            use(cache_server.alias)
        found.append(cache_server.left())

    run(target)
    assert found == [True, True, set(), set(), set()]
    cache_server.assert_own_is_untouched()


@of_each_thread
def test_a_scope_where_a_client_is_open(cache_server: CacheServer) -> None:
    """A scope uses the client that its thread had, and does not close it."""
    with connection_scope():
        assert use(cache_server.alias)[1] is cache_server.object
    cache_server.assert_own_is_untouched()


@with_app
@of_each_thread
def test_the_end_of_a_thread(cache_server: CacheServer) -> None:
    """With the app, what a plain thread made is closed when it ends."""
    held: list[int] = []

    def target() -> None:
        use(cache_server.alias)
        held.append(len(cache_server.clients()))

    for _ in range(10):
        run(target)
        assert not cache_server.left()
    assert held == [1] * 10
    cache_server.assert_own_is_untouched()


@with_app
@of_each_thread
def test_one_context_after_another(cache_server: CacheServer) -> None:
    """A thread that makes a client in each request's context keeps none of another request's alive."""
    kept: list[int] = []

    def target() -> None:
        for _ in range(20):
            contextvars.Context().run(lambda: caches[cache_server.alias])  # makes no connection
        kept.append(len(current_holder().caches))
        use(cache_server.alias)

    run(target)
    assert kept[0] <= 1
    assert not cache_server.left()


def test_the_end_of_a_worker(cache_server: CacheServer, gate: Gate) -> None:
    """What a callback makes when its pool is gone is closed when its worker has ended."""
    done = threading.Event()

    def callback(_: object) -> None:
        use(cache_server.alias)
        done.set()

    pool = ThreadPoolExecutor(1, conn_max_idle=30)
    future = pool.submit(gate)
    gate.wait_for()
    future.add_done_callback(callback)
    pool.shutdown(wait=False)
    gate.open()
    assert done.wait(10)
    assert not cache_server.left()


@pytest.mark.parametrize("end", ["shutdown", "shutdown without waiting", "forgotten"])
def test_the_pools_end(end: str, cache_server: CacheServer) -> None:
    """A pool that is shut down or forgotten lets go of what an idle worker keeps."""
    pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, conn_max_idle=30)
    assert pool is not None
    pool.submit(use, cache_server.alias).result(10)
    assert cache_server.clients()
    if end != "forgotten":
        pool.shutdown(wait=end == "shutdown")
    pool = None
    assert not cache_server.left()


def in_an_immediate_executor(fn: Callable[..., Any], *args: Any) -> Any:
    return ImmediateExecutor().submit(fn, *args).result(0)


def in_a_pool_that_is_inline(fn: Callable[..., Any], *args: Any) -> Any:
    with run_inline(), ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result(0)


INLINE = pytest.mark.parametrize("call", [in_an_immediate_executor, in_a_pool_that_is_inline])


@INLINE
@pytest.mark.parametrize("app", [True, False])
def test_the_callers_client(
    call: Callable[..., Any], app: bool, cache_server: CacheServer, request: pytest.FixtureRequest
) -> None:
    """A task in its caller's thread uses the caller's client, which stays open."""
    if app:
        request.getfixturevalue("watch_every_thread")
    assert call(connection_of, cache_server.alias) == cache_server.own
    cache_server.assert_own_is_untouched()
    assert not cache_server.clients()


@INLINE
@of_each_thread
def test_a_client_made_in_the_callers_thread(
    call: Callable[..., Any], cache_server: CacheServer
) -> None:
    """What such a task makes is closed at its end, or at its exception."""

    def fails() -> None:
        use(cache_server.alias)
        assert cache_server.clients()
        raise LookupError

    def target() -> None:
        call(use, cache_server.alias)
        assert not cache_server.left()
        with pytest.raises(LookupError):
            call(fails)
        ended.append(len(cache_server.left()))

    ended: list[int] = []
    run(target)
    assert ended == [0]
    cache_server.assert_own_is_untouched()


@INLINE
@with_app
@of_each_thread
def test_another_context_in_the_callers_thread(
    call: Callable[..., Any], cache_server: CacheServer
) -> None:
    """A second client, made by a task in a context of its own, leaves the thread's first one alone."""
    found: list[object] = []

    def target() -> None:
        first = connection_of(cache_server.alias)
        call(contextvars.Context().run, use, cache_server.alias)
        found.append(len(wait_until(cache_server.clients, lambda ids: len(ids) == 1)))
        found.append(connection_of(cache_server.alias) == first)

    run(target)
    assert found == [1, True]
    assert not cache_server.left()


def test_in_a_workers_thread(cache_server: CacheServer) -> None:
    """A task that a worker runs at once uses the worker's client."""

    def task() -> bool:
        first = connection_of(cache_server.alias)
        same: bool = in_an_immediate_executor(connection_of, cache_server.alias) == first
        return same and connection_of(cache_server.alias) == first

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(task).result(10)
        assert not cache_server.left()


@with_app
def test_a_fork(cache_server: CacheServer, gate: Gate) -> None:
    """A forked child leaves the sockets of its parent's threads and workers alone."""

    def child() -> None:
        run(lambda: use("default"))
        close_all_that_is_ours()
        with ThreadPoolExecutor(1) as own:
            own.submit(use, cache_server.alias).result(10)

    def task() -> bool:
        first = connection_of(cache_server.alias)
        forked.append(fork(child))
        return connection_of(cache_server.alias) == first

    forked: list[tuple[int, str]] = []
    with ThreadPoolExecutor(1, conn_max_idle=30) as pool:
        first = pool.submit(connection_of, cache_server.alias).result(10)
        forked.append(fork(child))
        assert pool.submit(connection_of, cache_server.alias).result(10) == first
        assert pool.submit(task).result(20)
    assert forked == [(0, "")] * 2
    assert not cache_server.left()
    cache_server.assert_own_is_untouched()


def close_all_that_is_ours() -> None:
    from django_executors.lifecycle.release import release

    release(current_holder())


@of_each_thread
def test_without_the_library(cache_server: CacheServer) -> None:
    """Without the app a plain thread is Django's: nothing of it is known here."""
    known: list[object] = []

    def target() -> None:
        use(cache_server.alias)
        known.append(current_holder().caches)
        close_own(cache_server.alias)

    run(target)
    assert known == [[]]
