"""One database, on the suite's server."""

from __future__ import annotations

import os

from private_servers import django_database

SECRET_KEY = "of the inner project"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.projects.testapp"]
ROOT_URLCONF = "tests.projects.drain_project.urls"
STATIC_URL = "static/"
DATABASES = {"default": django_database(os.environ["TEST_POSTGRES_URL"]) | {"NAME": "drained"}}
