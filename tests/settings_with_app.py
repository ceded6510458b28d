"""The suite's settings, with the app installed."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "django_executors"]
