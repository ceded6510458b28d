"""What `manage.py check` says of the settings, and of the process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from . import conf, registry
from .connections.wrapper import most_pooled


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Return an error for each setting, and each executor of EXECUTORS, that is wrong."""
    return _errors_of(conf.read, conf.SETTINGS) or _errors_of(registry.make, registry.executors)


def check_sizes(**kwargs: Any) -> list[CheckMessage]:
    """Return a warning for each number of workers that another setting does not allow for."""
    return [] if check_settings() else [*_above_the_ceiling(), *_above_the_pool()]


def _above_the_ceiling() -> Iterator[CheckMessage]:
    wanted = sum(registry.most_workers().values())
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
        for name, workers in registry.most_workers().items():
            if most is not None and conf.current().under_ceiling(alias, workers) > most:
                yield CheckWarning(
                    f"EXECUTORS[{name!r}] has max_workers={workers}, and the pool of "
                    f"DATABASES[{alias!r}] gives out at most {most} connections.",
                    hint="Those that need more wait for the pool, and may get its PoolTimeout. Lower "
                    "max_workers, raise the pool's max_size, or set "
                    f"EXECUTORS_MAX_CONNECTIONS[{alias!r}].",
                    id="django_executors.W002",
                )


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
