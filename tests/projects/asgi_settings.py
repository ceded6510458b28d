"""The settings of the process that uvicorn runs in; each run says its own CONN_MAX_AGE and apps."""

import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, INSTALLED_APPS

ROOT_URLCONF = os.environ["TEST_SITE"]
DATABASES["default"]["CONN_MAX_AGE"] = json.loads(os.environ["TEST_CONN_MAX_AGE"])
MIDDLEWARE = os.environ.get("TEST_MIDDLEWARE", "").split()
if "TEST_WITHOUT_APP" not in os.environ:
    INSTALLED_APPS = [*INSTALLED_APPS, "django_executors"]
