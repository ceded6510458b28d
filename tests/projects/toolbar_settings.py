"""Settings of a site with django-debug-toolbar."""

from __future__ import annotations

import os

from debug_toolbar.settings import PANELS_DEFAULTS

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "django.contrib.staticfiles", "debug_toolbar"]
MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware"]
ROOT_URLCONF = "tests.projects.toolbar_site"
STATIC_URL = "static/"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": lambda request: True, "IS_RUNNING_TESTS": False}
ALLOWED_HOSTS = ["*"]

# panels: begin
DEBUG_TOOLBAR_PANELS = [
    panel.replace("debug_toolbar.panels.sql.", "django_executors.debug_toolbar.")
    for panel in PANELS_DEFAULTS
]
# panels: end
if "WITHOUT_THE_PANEL" in os.environ:
    DEBUG_TOOLBAR_PANELS = PANELS_DEFAULTS
