"""The settings: this is their only reader.

They are read when they are first needed, and again after `override_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import UserSettingsHolder, settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from .arguments import check_seconds

EXECUTORS = "EXECUTORS"
MAX_CONNECTIONS = "EXECUTORS_MAX_CONNECTIONS"
WAIT_TIMEOUT = "EXECUTORS_CONNECTION_WAIT_TIMEOUT"
APPLICATION_NAME = "EXECUTORS_APPLICATION_NAME"
HOLD_WARNING = "EXECUTORS_HOLD_WARNING"

#: Of an entry of EXECUTORS that names none.
DEFAULT_BACKEND = "django_executors.ThreadPoolExecutor"
BACKENDS = (
    DEFAULT_BACKEND,
    "django_executors.ProcessPoolExecutor",
    "django_executors.dask.DaskExecutor",
    "django_executors.ImmediateExecutor",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """The settings of this library.

    Attributes:
        max_connections: database alias → the most connections that worker threads hold at once.
        connection_wait_timeout: for how many seconds one of them waits for its turn to connect.
        application_name: how their connections are called on the server, with fields to fill in.
        hold_warning: for how many seconds a task may hold a connection before that is logged.
    """

    max_connections: Mapping[str, int]
    connection_wait_timeout: float
    application_name: str | None
    hold_warning: float | None

    def under_ceiling(self, alias: str, workers: int) -> int:
        """Return how many connections to this alias so many workers may hold at once."""
        return min(workers, self.max_connections.get(alias, workers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """One entry of EXECUTORS.

    Attributes:
        backend: what BACKEND names.
        options: what it is made with.
    """

    backend: Any
    options: Mapping[str, Any]


def current() -> Conf:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: one of them is wrong.
    """
    global _current
    found, changes = _current, _changes
    if found is None:
        found = Conf(
            max_connections=read(MAX_CONNECTIONS),
            connection_wait_timeout=read(WAIT_TIMEOUT),
            application_name=read(APPLICATION_NAME),
            hold_warning=read(HOLD_WARNING),
        )
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


def settings_module() -> str | None:
    """Return the name of the settings' module; None: they are from none."""
    # Private names of Django's: inside `override_settings` the settings lie below what is overridden.
    found: Any = vars(settings)["_wrapped"]
    while isinstance(found, UserSettingsHolder):
        found = found.default_settings
    return getattr(found, "SETTINGS_MODULE", None)


def _executors(value: object) -> Mapping[str, Named]:
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(f"{EXECUTORS} must be a dict from aliases to dicts, not {value!r}")
    return {alias: _named(f"{EXECUTORS}[{alias!r}]", alias, entry) for alias, entry in value.items()}


def _named(where: str, alias: object, entry: object) -> Named:
    if not isinstance(alias, str):
        raise ImproperlyConfigured(f"{EXECUTORS} has the alias {alias!r}, which is not a string")
    if not isinstance(entry, Mapping):
        raise ImproperlyConfigured(f"{where} must be a dict with 'BACKEND' and 'OPTIONS', not {entry!r}")
    if unknown := entry.keys() - {"BACKEND", "OPTIONS"}:
        names = ", ".join(sorted(map(repr, unknown)))
        raise ImproperlyConfigured(
            f"{where} has the unknown key {names}: it takes 'BACKEND' and 'OPTIONS'"
        )
    backend, options = entry.get("BACKEND", DEFAULT_BACKEND), entry.get("OPTIONS", {})
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured(f"{where}['OPTIONS'] must be a dict, not {options!r}")
    if not isinstance(backend, str):
        raise ImproperlyConfigured(
            f"{where}['BACKEND'] must be the dotted path of a class, as in {DEFAULT_BACKEND!r}, "
            f"not {backend!r}"
        )
    try:
        return Named(backend=import_string(backend), options=dict(options))
    except Exception as error:
        raise ImproperlyConfigured(
            f"{where}['BACKEND']: {type(error).__name__}: {error}. This library has "
            f"{', '.join(map(repr, BACKENDS))}"
        ) from error


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


def _application_name(value: object) -> str | None:
    if value is None:
        return None
    example = f"{APPLICATION_NAME} must be a string, as in '{{project}}:{{executor}}:{{pid}}', or None"
    if not isinstance(value, str):
        raise ImproperlyConfigured(f"{example}, not {value!r}")
    try:
        value.format(project="a project", executor="an executor", pid=1)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ImproperlyConfigured(
            f"{example}, not {value!r}: {type(error).__name__}: {error}; its fields are 'project', "
            "'executor' and 'pid'"
        ) from None
    return value


def _hold_warning(value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = check_seconds(HOLD_WARNING, value)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"{error}, or None") from None
    if not seconds:
        raise ImproperlyConfigured(f"{HOLD_WARNING} must be more than 0 seconds, or None, not {value!r}")
    return seconds


#: How each setting is checked, and its default.
SETTINGS: dict[str, tuple[Callable[[object], Any], object]] = {
    EXECUTORS: (_executors, {}),
    MAX_CONNECTIONS: (_max_connections, {}),
    WAIT_TIMEOUT: (_wait_timeout, 30.0),
    APPLICATION_NAME: (_application_name, None),
    HOLD_WARNING: (_hold_warning, None),
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
