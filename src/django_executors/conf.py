"""The settings: this is their only reader.

They are read when they are first needed, and again after `override_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from .arguments import check_seconds

MAX_CONNECTIONS = "EXECUTORS_MAX_CONNECTIONS"
WAIT_TIMEOUT = "EXECUTORS_CONNECTION_WAIT_TIMEOUT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """The settings of this library.

    Attributes:
        max_connections: database alias → the most connections that worker threads hold at once.
        connection_wait_timeout: for how many seconds one of them waits for its turn to connect.
    """

    max_connections: Mapping[str, int]
    connection_wait_timeout: float


def current() -> Conf:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: one of them is wrong.
    """
    global _current
    found, changes = _current, _changes
    if found is None:
        found = Conf(max_connections=read(MAX_CONNECTIONS), connection_wait_timeout=read(WAIT_TIMEOUT))
        if changes == _changes:  # or it may be of before
            _current = found
    return found


def read(name: str) -> Any:
    """Return one setting, or its default.

    Raises:
        ImproperlyConfigured: it is wrong.
    """
    check, default = SETTINGS[name]
    return check(getattr(settings, name, default))


def _max_connections(value: object) -> Mapping[str, int]:
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(
            f"{MAX_CONNECTIONS} must be a dict from database aliases to numbers, not {value!r}"
        )
    for alias, most in value.items():
        if alias not in settings.DATABASES:
            known = ", ".join(map(repr, settings.DATABASES))
            raise ImproperlyConfigured(
                f"{MAX_CONNECTIONS} names {alias!r}, which is not in DATABASES: it has {known}"
            )
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ImproperlyConfigured(
                f"{MAX_CONNECTIONS}[{alias!r}] must be a whole number of 1 or more, not {most!r}; "
                "without an entry an alias has no ceiling"
            )
    return dict(value)


def _wait_timeout(value: object) -> float:
    try:
        return check_seconds(WAIT_TIMEOUT, value)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(str(error)) from None


#: How each setting is checked, and its default.
SETTINGS: dict[str, tuple[Callable[[object], Any], object]] = {
    MAX_CONNECTIONS: (_max_connections, {}),
    WAIT_TIMEOUT: (_wait_timeout, 30.0),
}

_current: Conf | None = None
#: How often one of the settings has changed.
_changes = 0


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _current, _changes
    if setting in SETTINGS or setting == "DATABASES":
        _changes += 1
        _current = None


setting_changed.connect(_forget, dispatch_uid="django_executors.conf")
