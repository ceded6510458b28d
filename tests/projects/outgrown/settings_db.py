"""In worker processes that read a table."""

from .settings_memory import *  # noqa: F403
from .settings_memory import INSTALLED_APPS

# settings: begin
INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
