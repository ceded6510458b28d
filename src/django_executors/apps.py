"""The optional app: `"django_executors"` in INSTALLED_APPS."""

from __future__ import annotations

import contextlib
import importlib

from django.apps import AppConfig
from django.core.checks import register

from . import checks
from .connections import thread_end


class DjangoExecutorsConfig(AppConfig):
    """Has every thread of the process close its own connections when it ends, and settings checked."""

    name = "django_executors"

    def ready(self) -> None:
        thread_end.watch_every_thread()
        for check in (checks.check_settings, checks.check_sizes, checks.check_greenlets):
            register(check, "executors")
        # Which has the checks of TASKS registered, before they run: a view's import would be too late.
        with contextlib.suppress(ImportError):  # Django 5.2
            importlib.import_module("django.tasks")
