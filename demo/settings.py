"""A small project: sales are counted, totals are written down."""

import os

from private_servers import django_database

SECRET_KEY = "not a secret: this project runs on one machine for a minute"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# "django_executors" is left out here: as an app it has *every* thread of the process close its
# connections when it ends, those of the standard pool too, and the experiment would then compare
# django-executors with itself. Its ThreadPoolExecutor does not need the app.
INSTALLED_APPS = ["shop"]

# Of the page (`make site`).
ROOT_URLCONF = "shop.urls"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
EXECUTORS = {"default": {"OPTIONS": {"max_workers": 4}}}

DATABASES = {"default": django_database(os.environ["DATABASE_URL"])}

# A project with a read replica has a second alias: what it reads comes from there.
if replica_url := os.environ.get("REPLICA_URL"):
    DATABASES["replica"] = django_database(replica_url)
    DATABASE_ROUTERS = ["shop.routers.ReadFromReplica"]

if ceiling := os.environ.get("CEILING"):
    EXECUTORS_MAX_CONNECTIONS = {"default": int(ceiling)}
    # However slow the machine: that a thousand jobs take long is not what is shown.
    EXECUTORS_CONNECTION_WAIT_TIMEOUT = 300.0

# When the server is full, the library logs a line for each connection of the process. Here that is
# the very thing which is counted, and a hundred lines would be in the way.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"django_executors.connections.incidents": {"level": "CRITICAL"}},
}
