"""In Celery's workers."""

import os

from .settings_memory import *  # noqa: F403

BROKER = os.environ["TEST_REDIS_URL"]

# settings: begin
CELERY_BROKER_URL = BROKER
CELERY_RESULT_BACKEND = BROKER
CELERY_RESULT_EXTENDED = True
TASKS = {
    "default": {
        "BACKEND": "django_tasks_celery.CeleryBackend",
        "OPTIONS": {"CELERY_APP": "tests.projects.outgrown.celery.app"},
    }
}
