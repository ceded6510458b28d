"""What `manage.py check` says of the settings, and of the process."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import conf, registry
from .base import Executor
from .connections.wrapper import most_pooled

#: By vendor: how many connections a server takes from ordinary users, and how many it has.
_COUNTS = {
    "postgresql": (
        (
            "SELECT current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
            " - coalesce(current_setting('reserved_connections', true)::int, 0)"
        ),
        "SELECT sum(numbackends) FROM pg_stat_database WHERE datname IS NOT NULL",
    ),
    "mysql": ("SELECT @@max_connections", "SHOW GLOBAL STATUS LIKE 'Threads_connected'"),
}


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Return an error for each setting, and each executor of EXECUTORS, that is wrong."""
    return _errors_of(conf.read, conf.SETTINGS) or _errors_of(registry.make, registry.executors)


def check_sizes(**kwargs: Any) -> list[CheckMessage]:
    """Return a warning for each number of workers that another setting does not allow for."""
    return [] if check_settings() else [*_above_the_ceiling(), *_above_the_pool()]


def _above_the_ceiling() -> Iterator[CheckMessage]:
    wanted = sum(_workers().values())
    for alias, ceiling in conf.current().max_connections.items():
        if wanted > ceiling:
            yield CheckWarning(
                f"The executors of EXECUTORS have {wanted} workers together, and "
                f"EXECUTORS_MAX_CONNECTIONS[{alias!r}] is {ceiling}.",
                hint="Those that need more wait for their turn, for at most "
                "EXECUTORS_CONNECTION_WAIT_TIMEOUT seconds. Lower max_workers, raise the ceiling, or "
                "silence this check if they may wait.",
                id="django_executors.W001",
            )


def _above_the_pool() -> Iterator[CheckMessage]:
    for alias in connections:
        most = most_pooled(connections[alias])
        for name, workers in _workers().items():
            if most is not None and _under_the_ceiling(alias, workers) > most:
                yield CheckWarning(
                    f"EXECUTORS[{name!r}] has max_workers={workers}, and the pool of "
                    f"DATABASES[{alias!r}] gives out at most {most} connections.",
                    hint="Those that need more wait for the pool, and may get its PoolTimeout. Lower "
                    "max_workers, raise the pool's max_size, or set "
                    f"EXECUTORS_MAX_CONNECTIONS[{alias!r}].",
                    id="django_executors.W002",
                )


def check_servers(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return a warning for each server that has not as many connections left as EXECUTORS may want.

    Only where Django checks databases: in `migrate`, and `check --database`.
    """
    if check_settings():
        return []
    workers, processes = sum(_workers().values()), _processes()
    hint = "Lower max_workers, or set EXECUTORS_MAX_CONNECTIONS, to what is left for one process."
    if processes:
        hint += " Worker processes count one by one, and have each a ceiling: lower their max_workers."
    wanted: Counter[tuple[Any, ...]] = Counter()
    names: dict[tuple[Any, ...], list[str]] = {}
    for alias in databases or ():
        settings = connections[alias].settings_dict
        if most_pooled(connections[alias]) is None:  # its size says what it will have
            server = settings["ENGINE"], settings["HOST"], settings["PORT"]
            wanted[server] += _under_the_ceiling(alias, workers) + processes
            names.setdefault(server, []).append(alias)
    return [
        CheckWarning(
            f"The executors of EXECUTORS may want {number} connections to the server of "
            f"{', '.join(f'DATABASES[{alias!r}]' for alias in names[server])} in each process, and it "
            f"has {room} left.",
            hint=hint,
            id="django_executors.W003",
        )
        for server, number in wanted.items()
        if number and (room := _room(connections[names[server][0]])) is not None and number > room
    ]


def check_greenlets(**kwargs: Any) -> list[CheckMessage]:
    """Return an error if threads are greenlets in this process."""
    # Not imported here: where it is not imported, nothing is patched.
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    patched_by = [
        name
        for name, is_patched in (
            ("gevent", gevent is not None and gevent.is_module_patched("threading")),
            ("eventlet", eventlet is not None and eventlet.is_monkey_patched("thread")),
        )
        if is_patched
    ]
    return [
        Error(
            f"{name} has patched the threads of this process: django_executors does not work so.",
            hint="Run it in processes that are not patched, with threads: gunicorn's gthread workers, "
            "for example.",
            id="django_executors.E002",
        )
        for name in patched_by
    ]


def _errors_of(read: Callable[[str], object], names: Iterable[str]) -> list[CheckMessage]:
    errors: list[CheckMessage] = []
    for name in names:
        try:
            read(name)
        except ImproperlyConfigured as error:
            errors.append(Error(str(error), id="django_executors.E001"))
    return errors


def _named() -> dict[str, Executor]:
    return {alias: registry.make(alias) for alias in conf.read(conf.EXECUTORS)}


def _workers() -> dict[str, int]:
    """Return how many threads each executor has at most that EXECUTORS names."""
    return {alias: executor._most_workers for alias, executor in _named().items()}


def _processes() -> int:
    """Return how many processes they have at most, all together."""
    return sum(executor._most_processes for executor in _named().values())


def _under_the_ceiling(alias: str, workers: int) -> int:
    return min(workers, conf.current().max_connections.get(alias, workers))


def _room(wrapper: BaseDatabaseWrapper) -> int | None:
    """Return how many more connections the server takes; None if it does not say, or has none."""
    counts = []
    was_open = wrapper.connection is not None
    try:
        for query in _COUNTS.get(wrapper.vendor, ()):
            with wrapper.cursor() as cursor:
                cursor.execute(query)
                counts.append(int(cursor.fetchone()[-1]))
    except DatabaseError:  # also of what only calls itself PostgreSQL
        return None
    finally:
        if not was_open:
            wrapper.close()
    if not counts:
        return None
    most, used = counts
    return most - used + (not was_open)
