"""A worker's cache clients: one set for all its tasks, let go by the rules for connections.

Django keeps cache clients in the context, so that a task would use its submitter's, or make new ones
in each task. `caches.create_connection`, replaced here as the hook on connections is, gives a worker's
tasks the clients that the worker has.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from asgiref.sync import AsyncToSync
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache

from . import ledger
from .holder import Holder, current_holder, in_task_of, next_serial


class Client:
    """One cache client, which one thread uses."""

    __slots__ = (
        "__weakref__",
        "alias",
        "backend",
        "kept_since",
        "serial",
        "settings",
        "thread_ident",
    )

    def __init__(
        self, alias: str, backend: Callable[[], BaseCache | None], settings: Any, thread_ident: int
    ) -> None:
        self.alias = alias
        self.thread_ident = thread_ident
        #: Returns it, or None if nobody has it any more.
        self.backend = backend
        self.settings = settings
        #: Drawn when it was made.
        self.serial = next_serial()
        #: Set while its worker keeps it between two tasks.
        self.kept_since: float | None = None


_of_workers: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()


def of_workers() -> list[Client]:
    """Return the clients of all workers of this process."""
    found = (reference() for reference in _of_workers.valuerefs())
    return [client for client in found if client is not None]


def keep(holder: Holder) -> None:
    """Keep a worker's cache clients for the next task."""
    now = time.monotonic()
    for client in holder.caches:
        if client.kept_since is None:
            client.kept_since = now


def kept_since(holder: Holder) -> list[float]:
    """Return since when a worker that has nothing to do has kept each of its clients."""
    return [client.kept_since for client in holder.caches if client.kept_since is not None]


def let_go(
    holder: Holder, *, since: int = 0, forget: bool = True, others: bool = False
) -> list[tuple[str, BaseException]]:
    """Close the cache clients that this thread has made since that serial number was drawn.

    Args:
        others: only those that other threads, which have done their part, made for this worker's task.
        forget: whatever asks for one next gets a new one. Otherwise they are its clients still, and
            connect again when they are used.

    Returns:
        The errors, by alias.
    """
    errors: list[tuple[str, BaseException]] = []
    for client in holder.caches.copy():
        if client.serial <= since or (others and client.thread_ident == holder.thread_ident):
            continue
        backend = client.backend()
        if forget:
            holder.caches.remove(client)
            _forget(client.alias, backend)
        try:
            _close(backend)
        except BaseException as error:  # noqa: BLE001 - of whatever library; the others are closed too
            errors.append((client.alias, error))
    return errors


def _forget(alias: str, backend: BaseCache | None) -> None:
    # The alias may have left the settings: then there is nothing to forget.
    with contextlib.suppress(Exception):
        if any(one is backend for one in caches.all(initialized_only=True)):
            del caches[alias]


def _close(backend: Any) -> None:
    if backend is None:
        return
    try:
        backend.close()
    finally:
        for pool in _redis_pools(backend).values():
            pool.disconnect()


def _redis_pools(backend: Any) -> dict[Any, Any]:
    """Return the connections of a Redis client, which `close()` leaves open until they are collected."""
    if _is_a(backend, "django.core.cache.backends.redis", "RedisCache"):
        client = vars(backend).get("_cache")  # made on demand
        return {} if client is None else client._pools.copy()
    factory = _django_redis_factory(backend)
    own: dict[Any, Any] = {} if factory is None else vars(factory).get("_pools", {})
    return own.copy()


def sockets(backend: Any) -> list[Any]:
    """Return the sockets of a client, as far as its class is known, without waiting for a lock."""
    found: list[Any] = []
    with contextlib.suppress(Exception):  # of whatever library, and of whatever version
        # Private names of redis-py's; there is no public one.
        for pool in _redis_pools(backend).values():
            in_use = vars(pool)["_in_use_connections"]
            found += [each._sock for each in (*vars(pool)["_available_connections"], *in_use)]
        if _is_a(backend, "django.core.cache.backends.memcached", "PyMemcacheCache"):
            found += [client.sock for client in backend._cache.clients.values()]
    return found


def _django_redis_factory(backend: Any) -> Any:
    if _is_a(backend, "django_redis.cache", "RedisCache"):
        return getattr(backend.client, "connection_factory", None)
    return None


def _is_a(thing: object, module: str, name: str) -> bool:
    return module in sys.modules and isinstance(thing, getattr(sys.modules[module], name))


def _in_charge() -> Holder:
    """Return who lets go of what the calling thread makes now."""
    worker = in_task_of.get()
    if worker is not None and worker.task is not None:
        with contextlib.suppress(RuntimeError):  # no loop runs here
            if asyncio.get_running_loop() in AsyncToSync.loop_thread_executors:
                return worker  # which has called `async_to_sync`, and waits for the thread of that loop
    return current_holder().in_charge


def _install() -> None:
    django_create = caches.create_connection

    def create_connection(alias: str) -> Any:
        ident = current_holder().thread_ident
        holder = _in_charge()
        is_worker = holder.executor is not None
        has_an_end = is_worker or holder.scopes or holder.inline_tasks
        if not (has_an_end or ledger.on_open):
            return django_create(alias)
        settings = caches.settings.get(alias)
        for client in holder.caches if is_worker else ():
            if (client.alias, client.thread_ident) == (alias, ident) and client.settings is settings:
                client.kept_since = None
                return client.backend()
        backend: Any = django_create(alias)
        if is_worker and (factory := _django_redis_factory(backend)) is not None:
            # It has one pool for the whole process: what a worker opens has to be its own.
            vars(factory)["_pools"] = {}
        if not is_worker:
            # A thread that serves one request after another makes new ones in each, without end.
            holder.caches = [each for each in holder.caches if each.backend() is not None]
        ref = (lambda: backend) if has_an_end else weakref.ref(backend)
        client = Client(alias, ref, settings, ident)
        holder.caches.append(client)
        if is_worker:
            _of_workers[client.serial] = client
        if ledger.on_open is not None:
            ledger.on_open(holder)
        return backend

    # A private seam of Django's: BaseConnectionHandler.__getitem__ calls self.create_connection.
    vars(caches)["create_connection"] = create_connection


_install()
