"""In the process that enqueues."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

DATABASES["default"]["NAME"] = os.environ["TEST_DATABASE"]

# settings: begin
TASKS = {"default": {"BACKEND": "django_executors.backends.ExecutorBackend"}}
