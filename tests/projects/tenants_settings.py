"""A project on django-tenants: a schema for each customer, chosen by `search_path`."""

from __future__ import annotations

import os

from private_servers import django_database

SECRET_KEY = "of the test suite"
USE_TZ = True
SHARED_APPS = ["django_tenants", "django.contrib.contenttypes"]
TENANT_APPS = ["django.contrib.contenttypes"]
INSTALLED_APPS = SHARED_APPS
TENANT_MODEL = "customers.Client"  # never asked for: the tests name schemas
TENANT_DOMAIN_MODEL = "customers.Domain"
TENANT_LIMIT_SET_CALLS = True
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
DATABASES = {
    "default": django_database(os.environ["TEST_POSTGRES_URL"])
    | {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": "tenants",
    }
}
