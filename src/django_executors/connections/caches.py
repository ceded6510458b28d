"""A worker's cache clients: one set for all its tasks, let go by the rules for connections.

Django keeps cache clients in the context, so that a task would use its submitter's, or make new ones
in each task. `caches.create_connection`, replaced here as the hook on connections is, gives a worker's
tasks the clients that the worker has.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from django.conf import settings
from django.core.cache import caches

from django_executors.clock import Clock

from . import ledger
from .ledger import CacheClient, Holder, current_holder, next_serial


def keep(holder: Holder) -> None:
    """Keep a worker's cache clients for the next task."""
    now = Clock.monotonic()
    for client in holder.caches:
        if client.kept_since is None:
            client.kept_since = now


def let_go(holder: Holder, *, since: int = 0, forget: bool = True) -> list[tuple[str, BaseException]]:
    """Close the cache clients that this thread has made since that serial number was drawn.

    Args:
        forget: whatever asks for one next gets a new one. Otherwise they are its clients still, and
            connect again when they are used.

    Returns:
        The errors, by alias.
    """
    errors: list[tuple[str, BaseException]] = []
    for client in holder.caches.copy():
        if client.serial <= since:
            continue
        backend = client.backend()
        if forget:
            holder.caches.remove(client)
            _forget(client.alias, backend)
        try:
            _close(backend)
        except BaseException as error:  # noqa: BLE001 - of whatever library; the others are closed too
            errors.append((f"{client.alias} (a cache)", error))
    return errors


def _forget(alias: str, backend: Any) -> None:
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
        # Private names of Django's RedisCache, whose `close()` leaves its connections to the collector.
        client = vars(backend).get("_cache")
        for pool in list(getattr(client, "_pools", {}).values()):
            pool.disconnect()


def forget_all() -> None:
    """Have whatever asks for a cache client next, in the current context, get a new one."""
    nothing: Any = None
    for alias in caches.settings if settings.configured else ():
        # Set before it is deleted: what another thread has put there newer versions of asgiref hide,
        # and give back to async code.
        caches[alias] = nothing
        del caches[alias]


def _install() -> None:
    django_create = caches.create_connection

    def create_connection(alias: str) -> Any:
        holder = current_holder()
        is_worker = holder.executor is not None
        has_an_end = holder.has_an_end or holder.inline_tasks
        if not (has_an_end or ledger.on_open):
            return django_create(alias)
        settings = caches.settings.get(alias)
        for client in holder.caches if is_worker else ():
            if client.alias == alias and client.settings is settings:
                client.kept_since = None
                holder.touch()
                return client.backend()
        backend = django_create(alias)
        if not is_worker:
            # A thread that serves one request after another makes new ones in each, without end.
            holder.caches = [each for each in holder.caches if each.backend() is not None]
        reference = (lambda: backend) if has_an_end else weakref.ref(backend)
        holder.caches.append(CacheClient(alias, settings, reference, next_serial()))
        holder.touch()
        if ledger.on_open is not None:
            ledger.on_open(holder)
        return backend

    # A private seam of Django's: BaseConnectionHandler.__getitem__ calls self.create_connection.
    vars(caches)["create_connection"] = create_connection


_install()
