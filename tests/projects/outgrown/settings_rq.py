"""In RQ's workers."""

import os

from .settings_memory import *  # noqa: F403
from .settings_memory import INSTALLED_APPS

BROKER = os.environ["TEST_REDIS_URL"]

# settings: begin
INSTALLED_APPS = [*INSTALLED_APPS, "django_rq", "django_tasks_rq"]
RQ_QUEUES = {"default": {"URL": BROKER}}
TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend"}}
