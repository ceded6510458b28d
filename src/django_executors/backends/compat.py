"""Django's Tasks, wherever they are: in Django 6.0 and newer, or in the package `django-tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.tasks import base, exceptions, signals
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.exceptions import InvalidTask
    from django.utils.json import normalize_json
else:
    try:
        from django.tasks import base, exceptions, signals
        from django.tasks.backends.base import BaseTaskBackend
        from django.tasks.exceptions import InvalidTask
        from django.utils.json import normalize_json
    except ImportError:
        from django_tasks import base, exceptions, signals
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.exceptions import InvalidTaskError as InvalidTask
        from django_tasks.utils import normalize_json

__all__ = ["BaseTaskBackend", "InvalidTask", "base", "exceptions", "normalize_json", "signals"]
