"""What the tests about cache clients share: a server, who is connected to it, and tasks that use it."""

from __future__ import annotations

import threading
from typing import Any

from django.core.cache import caches

from tests.support.observers import MemcachedObserver, RedisObserver

ALIASES = ["redis", "memcached"]


class CacheServer:
    """One alias of CACHES, its server, and the test's own client, which is connected throughout."""

    def __init__(self, alias: str, observer: RedisObserver | MemcachedObserver) -> None:
        self.alias = alias
        self.observer = observer
        self.own = connection_of(alias)
        self.object = caches[alias]
        self._before = observer.clients()

    def clients(self) -> set[int]:
        """Return the clients beyond those that were there when the test began."""
        return self.observer.clients() - self._before

    def left(self, *, within: float = 10.0) -> set[int]:
        """Return what is left of them when the server has had the time to notice."""
        return self.observer.left(self._before, within=within)

    def assert_own_is_untouched(self) -> None:
        """The test's own client is the same object, on the connection that it had."""
        assert caches[self.alias] is self.object
        assert connection_of(self.alias) == self.own
        assert self._before <= self.observer.clients()


def connection_of(alias: str) -> object:
    """Use the calling thread's client; return the server's number for it, or its socket's address."""
    cache: Any = caches[alias]
    cache.set("used", 1)
    if alias == "memcached":
        (client,) = cache._cache.clients.values()
        return client.sock.getsockname()
    return cache._cache.get_client().client_id()


def use(alias: str, number: int = 0) -> tuple[int, Any]:
    """Write and read a key; return the thread, and the client that it was done with."""
    key = f"key-{number}-of-{threading.get_ident()}"
    caches[alias].set(key, number)
    assert caches[alias].get(key) == number
    return threading.get_ident(), caches[alias]


def close_own(alias: str) -> None:
    """Close the calling thread's client for good, as nothing in Django does."""
    cache: Any = caches[alias]
    cache.close()
    if alias == "redis":
        for pool in cache._cache._pools.values():
            pool.disconnect()
    del caches[alias]
