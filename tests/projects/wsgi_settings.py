"""The settings of the processes that gunicorn runs."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

DATABASES["default"]["ATOMIC_REQUESTS"] = "TEST_ATOMIC_REQUESTS" in os.environ
if "TEST_KEEPS" in os.environ:
    DATABASES["default"] |= {"CONN_MAX_AGE": None, "OPTIONS": {"application_name": f"web-{os.getpid()}"}}
ROOT_URLCONF = os.environ["TEST_SITE"]
INSTALLED_APPS = [*INSTALLED_APPS, "django_executors"]
EXECUTORS = {"default": {"OPTIONS": {"max_workers": 4}}}
