"""The databases of a worker process: those that its parent uses, whatever its settings module says.

During a test run they are not the same: Django puts the test database's name in the place of the real
one, in the memory of the test's process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    found = {alias: dict(each) for alias, each in {**connections.settings, **used}.items()}
    for alias, database in found.items():
        name = str(database["NAME"])
        if name == ":memory:" or "mode=memory" in name:
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}] is SQLite in memory, which no other process can see. Use a file, "
                "in tests by DATABASES[...]['TEST']['NAME'], or django_executors.testing.run_inline"
            )
    return found


def settings_module() -> str | None:
    """Return the name of the module that the settings are from; None: they are from no module."""
    # Private names of Django's: inside `override_settings` the settings lie below what is overridden.
    found: Any = vars(settings)["_wrapped"]
    while isinstance(found, UserSettingsHolder):
        found = found.default_settings
    return getattr(found, "SETTINGS_MODULE", None)


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
    if connections.settings != databases:  # an AppConfig may have changed them
        differing = [
            alias
            for alias in {*databases, *connections.settings}
            if connections.settings.get(alias) != databases.get(alias)
        ]
        raise ImproperlyConfigured(
            f"A worker process would use other databases than its parent: {sorted(differing)}"
        )
