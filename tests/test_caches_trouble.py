"""When a cache server, or closing a client, fails: the error is the library's, the rest is let go."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import OperationalError
from django.test import override_settings
from pymemcache.exceptions import MemcacheError

from django_executors import ThreadPoolExecutor, all_connections
from private_servers import Memcached, Redis, start_memcached, start_redis
from private_servers.processes import free_port

from .cache_clients import CacheServer, use
from .keeping import queued, results
from .observers import MemcachedObserver, PostgresObserver, RedisObserver
from .testapp.models import Entry
from .waiting import wait_until

pytestmark = pytest.mark.usefixtures("collector_off")


class OfTheClosing(Exception):
    """What closing raises here."""


@pytest.fixture
def broken(cache_server: CacheServer) -> Iterator[CacheServer]:
    """Closing a client of this server fails, while the server is well."""

    def close(self: Any, **kwargs: Any) -> None:
        raise OfTheClosing

    if cache_server.alias == "memcached":  # whose sockets no one else closes
        own = type(cache_server.object).close

        def close(self: Any, **kwargs: Any) -> None:
            own(self)
            raise OfTheClosing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(cache_server.object), "close", close)
        yield cache_server


@pytest.mark.parametrize("error", [None, LookupError("of the task")])
def test_closing_fails(
    error: Exception | None,
    broken: CacheServer,
    caplog: pytest.LogCaptureFixture,
    postgres: PostgresObserver,
) -> None:
    """Other caches and the databases are let go, result or exception arrives, one warning says it."""
    closed: list[str] = []
    other = type(caches["default"])

    class Other(other):  # type: ignore[misc, valid-type]
        def close(self, **kwargs: Any) -> None:
            closed.append("default")

    def task() -> str:
        use(broken.alias)
        caches["default"].__class__ = Other
        Entry.objects.count()
        if error is not None:
            raise error
        return "the result"

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(task)
        assert future.exception(10) is error
        assert error is not None or future.result() == "the result"
        assert closed == ["default"]
        assert all_connections() == ()
        assert not postgres.left()
        assert not broken.left()
        (record,) = [each for each in caplog.records if each.name.startswith("django_executors")]
        assert record.levelno == logging.WARNING
        assert "test_closing_fails" in record.getMessage()
        assert f"alias={broken.alias} (a cache)" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[0] is OfTheClosing


@pytest.mark.usefixtures("watch_every_thread")
def test_closing_fails_at_a_threads_end(
    broken: CacheServer, caplog: pytest.LogCaptureFixture, postgres: PostgresObserver
) -> None:
    """At a thread's end too the databases are let go, and a living thread logs it."""

    def target() -> None:
        use(broken.alias)
        Entry.objects.count()

    thread = threading.Thread(target=target, name="ends")
    thread.start()
    thread.join(10)
    assert all_connections() == ()
    assert not postgres.left()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(10)
    (record,) = [each for each in caplog.records if each.name.startswith("django_executors")]
    assert f"thread=ends alias={broken.alias} (a cache)" in record.getMessage()


@contextlib.contextmanager
def only(alias: str, entry: dict[str, Any]) -> Iterator[None]:
    """Have this cache beside "default", and no client of it afterwards."""
    with override_settings(CACHES={"default": caches.settings["default"], alias: entry}):
        yield


REDIS = {
    "redis": "django.core.cache.backends.redis.RedisCache",
    "django-redis": "django_redis.cache.RedisCache",
}
PYMEMCACHE = "django.core.cache.backends.memcached.PyMemcacheCache"


@pytest.fixture
def second_memcached(memcached: MemcachedObserver) -> Iterator[Memcached]:
    with start_memcached() as server:
        yield server


@pytest.fixture
def second_redis(redis: RedisObserver) -> Iterator[Redis]:
    with start_redis() as server:
        yield server


# pymemcache replaces the client of a node that comes back without closing it: reference counting does.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_node_that_comes_and_goes(second_memcached: Memcached, memcached: MemcachedObserver) -> None:
    """32 workers with a node that is restarted under them: no KeyError, no hang, nothing is left."""
    stop = threading.Event()
    seen: Counter[type[BaseException] | None] = Counter()
    before = memcached.clients()
    first = caches.settings["memcached"]["LOCATION"]
    options = {"retry_attempts": 1, "retry_timeout": 0.01, "dead_timeout": 0.05, "timeout": 5}
    entry = {
        "BACKEND": PYMEMCACHE,
        "LOCATION": [first, second_memcached.address],
        "OPTIONS": options,
    }

    def task(number: int) -> None:
        for key in range(20):
            caches["nodes"].set(f"{number}-{key}", key)
            found = caches["nodes"].get(f"{number}-{key}")
            assert found is None or found == key

    with only("nodes", entry), ThreadPoolExecutor(32) as pool:

        def load() -> None:
            number = 0
            while not stop.is_set():
                futures = [pool.submit(task, number + each) for each in range(64)]
                seen.update(type(future.exception(60)) for future in futures)
                number += 64

        thread = threading.Thread(target=load)
        thread.start()
        for _ in range(3):
            second_memcached.restart()
            wait_until(lambda: False, within=0.3)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert not memcached.left(before)
    assert seen.pop(type(None), 0) > 64
    assert all(issubclass(each, (OSError, MemcacheError)) for each in seen if each), seen


@pytest.mark.parametrize("alias", ["redis", "django-redis", "memcached"])
def test_the_caches_server_is_down(alias: str, postgres: PostgresObserver) -> None:
    """A task's error is the cache library's own, and its connection to the database is let go."""
    import redis.exceptions

    def task() -> None:
        Entry.objects.count()
        caches[alias].set("number", 1)

    address = f"127.0.0.1:{free_port()}"
    entry = {"BACKEND": PYMEMCACHE, "LOCATION": address}
    if alias in REDIS:
        entry = {"BACKEND": REDIS[alias], "LOCATION": f"redis://{address}"}
    with only(alias, entry), ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            error = pool.submit(task).exception(20)
            assert isinstance(error, (redis.exceptions.ConnectionError, ConnectionRefusedError))
            assert all_connections() == ()
            assert not postgres.left()


def test_the_database_is_down(cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's error is the database driver's, and its cache client is let go."""
    from django.db import connections

    def task() -> None:
        use(cache_server.alias)
        Entry.objects.count()

    monkeypatch.setitem(connections.settings["default"], "PORT", str(free_port()))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            assert isinstance(pool.submit(task).exception(20), OperationalError)
            assert not cache_server.left()
    cache_server.assert_own_is_untouched()


@pytest.mark.parametrize("alias", REDIS)
def test_a_server_that_restarts(alias: str, second_redis: Redis) -> None:
    """A client that a worker kept while its server restarted is used again, or fails as itself once."""
    import redis.exceptions

    with (
        only(alias, {"BACKEND": REDIS[alias], "LOCATION": second_redis.url}),
        ThreadPoolExecutor(1, conn_max_idle=30) as pool,
    ):
        pool.submit(use, alias).result(10)
        second_redis.restart()
        error = pool.submit(use, alias).exception(10)
        assert error is None or isinstance(error, redis.exceptions.ConnectionError)
        assert results(queued(pool, lambda: use(alias)[0]))
