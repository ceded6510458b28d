"""The suite's settings: each alias a real server, started by conftest.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from private_servers import django_database

SECRET_KEY = "of the test suite"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.projects.testapp"]
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["127.0.0.1"]

_postgres = os.environ.get("TEST_POSTGRES_URL", "postgresql://nobody@127.0.0.1:1/not_started")
_sqlite = os.environ.get("TEST_SQLITE_FILE", str(Path(tempfile.gettempdir()) / "not-started.sqlite3"))

DATABASES = {
    "default": django_database(_postgres),
    "other": django_database(_postgres) | {"NAME": "other"},
    "pooled": django_database(_postgres) | {"NAME": "pooled", "OPTIONS": {"pool": {"max_size": 4}}},
    "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": _sqlite},
}
if "TEST_MARIADB_URL" in os.environ:
    DATABASES["mariadb"] = django_database(os.environ["TEST_MARIADB_URL"])

# Threads of the tests make no client of "default" that a server could count.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
if "TEST_REDIS_URL" in os.environ:
    CACHES["redis"] = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ["TEST_REDIS_URL"],
    }
if "TEST_MEMCACHED_ADDRESS" in os.environ:
    CACHES["memcached"] = {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": os.environ["TEST_MEMCACHED_ADDRESS"],
    }

TASKS = {"default": {"BACKEND": "django_executors.backends.ExecutorBackend", "QUEUES": []}}
