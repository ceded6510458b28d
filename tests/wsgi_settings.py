"""The settings of the processes that gunicorn runs."""

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

ROOT_URLCONF = "tests.wsgi"
INSTALLED_APPS = [*INSTALLED_APPS, "django_executors"]
