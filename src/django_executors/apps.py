"""The optional app: `"django_executors"` in INSTALLED_APPS."""

from __future__ import annotations

from django.apps import AppConfig

from .lifecycle import guard


class DjangoExecutorsConfig(AppConfig):
    """Has every thread of the process close its own connections when it ends."""

    name = "django_executors"

    def ready(self) -> None:
        guard.watch_every_thread()
