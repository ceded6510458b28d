"""What `manage.py check` says of the settings."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from . import conf


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Return an error for each setting that is wrong."""
    return [error for name in conf.SETTINGS for error in _check(name)]


def _check(name: str) -> list[CheckMessage]:
    try:
        conf.read(name)
    except ImproperlyConfigured as error:
        return [Error(str(error), id="django_executors.E001")]
    return []
