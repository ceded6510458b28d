"""The databases of a worker process: those that its parent uses, whatever its settings module says.

During a test run they are not the same: Django puts the test database's name in the place of the real
one, in the memory of the test's process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import django
from django.apps import apps
from django.conf import UserSettingsHolder, settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

#: By alias, what `DATABASES` has for it.
Databases = Mapping[str, dict[str, Any]]


def effective() -> Databases | None:
    """Return the databases that the calling thread uses; None: Django has no settings here.

    Raises:
        ImproperlyConfigured: one is in this process's memory.
    """
    if not settings.configured:
        return None
    used = {wrapper.alias: wrapper.settings_dict for wrapper in connections.all(initialized_only=True)}
    found: Databases = _copied({**connections.settings, **used})
    for alias, database in found.items():
        name = str(database["NAME"])
        if ":memory:" in name or "mode=memory" in name:
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}] is SQLite in memory, which no other process can see. Use a file, "
                "in tests by DATABASES[...]['TEST']['NAME'], or django_executors.testing.run_inline"
            )
    return found


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


def configured() -> Databases | None:
    """Return a copy of what this process has in DATABASES now; None: Django has no settings here."""
    if not settings.configured:
        return None
    found: Databases = _copied(connections.settings)
    return found


def differing(databases: Databases) -> list[str]:
    """Return the aliases for which this process has something else in DATABASES."""
    now = connections.settings
    if now == databases:
        return []
    return sorted(alias for alias in {*databases, *now} if now.get(alias) != databases.get(alias))


def refuse_others(before: Databases) -> None:
    """Return if this process has in DATABASES what it had before.

    Raises:
        ImproperlyConfigured: it has something else.
    """
    if others := differing(before):
        raise ImproperlyConfigured(
            f"The pool's processes have other databases than are in DATABASES now: {others}. Make a new "
            "pool; in tests, when the test databases are there"
        )


def settings_module() -> str | None:
    """Return the name of the module that the settings are from; None: they are from no module."""
    # Private names of Django's: inside `override_settings` the settings lie below what is overridden.
    found: Any = vars(settings)["_wrapped"]
    while isinstance(found, UserSettingsHolder):
        found = found.default_settings
    return getattr(found, "SETTINGS_MODULE", None)


class Withheld:
    """Stands for a value that another process has to take from its own settings."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Withheld)

    __hash__ = None  # type: ignore[assignment]


def without_secrets(databases: Databases) -> Databases:
    """Return these without passwords and what else Django hides in its error reports."""
    from django.views.debug import SafeExceptionReporterFilter

    def withheld(key: object, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: withheld(name, each) for name, each in value.items()}
        hides = isinstance(key, str) and SafeExceptionReporterFilter.hidden_settings.search(key)
        return Withheld() if value and hides else value

    return {alias: withheld(None, database) for alias, database in databases.items()}


def set_up_once(module: str | None, load: Callable[[], Databases]) -> None:
    """Set Django up in the calling process, with these databases and the passwords of its own settings.

    Args:
        load: gives the databases, when it is known where what they refer to is.

    Raises:
        ImproperlyConfigured: it cannot be done, or is set up otherwise.
    """
    with _lock:
        if module is not None and not settings.configured:
            os.environ["DJANGO_SETTINGS_MODULE"] = module
        wanted = load()
        if settings.configured and settings_module() != module:
            raise ImproperlyConfigured(
                f"it has the settings of {settings_module()}, and the tasks are to run with {module}"
            )
        for alias, database in wanted.items():
            _complete(f"DATABASES[{alias!r}]", database, connections.settings.get(alias, {}))
        if not apps.ready:
            set_up(module, wanted)
            return
        if others := differing(wanted):
            raise ImproperlyConfigured(f"it has other databases than the tasks are for: {others}")


_lock = threading.Lock()


def _complete(where: str, database: dict[str, Any], own: Mapping[str, Any]) -> None:
    for name, value in database.items():
        if isinstance(value, dict):
            _complete(f"{where}[{name!r}]", value, own.get(name, {}))
        elif isinstance(value, Withheld):
            if not own.get(name):
                raise ImproperlyConfigured(
                    f"{where}[{name!r}] is not in its own settings, and is not sent by others"
                )
            database[name] = own[name]


def set_up(module: str | None, databases: Databases) -> None:
    """Set Django up in the calling process, with these databases.

    Raises:
        ImproperlyConfigured: it cannot be done.
    """
    if module is not None:
        os.environ["DJANGO_SETTINGS_MODULE"] = module
    elif not settings.configured:
        raise ImproperlyConfigured(
            "A worker process needs the settings, and the parent's are from settings.configure(): put "
            "them in a module that DJANGO_SETTINGS_MODULE names, or call it at the main module's top"
        )
    connections.close_all()
    for alias in [alias for alias in connections if alias not in databases]:
        del connections.settings[alias]
    for alias, database in databases.items():
        held = connections.settings.setdefault(alias, {})
        held.clear()
        held.update(database)
    if not apps.ready:
        django.setup()
    if others := differing(databases):  # an AppConfig may have changed them
        raise ImproperlyConfigured(
            f"A worker process would use other databases than its parent: {others}"
        )
