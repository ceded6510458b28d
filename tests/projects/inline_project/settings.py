"""One database, which the test chooses."""

from __future__ import annotations

import json
import os

SECRET_KEY = "of the inner project"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.projects.inline_project.orders"]
DATABASES = {"default": json.loads(os.environ["INLINE_PROJECT_DATABASE"])}
