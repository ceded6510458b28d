"""The optional app: `"django_executors"` in INSTALLED_APPS."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from .checks import check_settings
from .lifecycle import guard


class DjangoExecutorsConfig(AppConfig):
    """Has every thread of the process close its own connections when it ends, and settings checked."""

    name = "django_executors"

    def ready(self) -> None:
        guard.watch_every_thread()
        register(check_settings, "executors")
