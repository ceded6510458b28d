"""Wrong options of `ExecutorBackend` are named, with what would be right."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from . import django_tasks_of_ours as tasks
from .django_tasks_of_ours import default_task_backend, with_options
from .subprocesses import run_python


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"executors": "mails"},
            "has the unknown key 'executors': it takes 'executor', 'enqueue_on_commit', 'max_results'",
        ),
        ({"enqueue_on_commit": "yes"}, "['enqueue_on_commit'] must be True or False, not 'yes'"),
        ({"max_results": 0}, "['max_results'] must be a whole number of 1 or more, not 0"),
        ({"max_results": True}, "['max_results'] must be a whole number of 1 or more, not True"),
        ({"max_results": None}, "['max_results'] must be a whole number of 1 or more, not None"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    """They are refused by name, with what may be there."""
    with with_options(**options), pytest.raises(ImproperlyConfigured) as raised:
        tasks.noop.enqueue()
    assert str(raised.value).startswith("TASKS['default']['OPTIONS']")
    assert str(raised.value).endswith(said)


def test_no_such_executor() -> None:
    """A system check says it, and so does `enqueue`."""
    with with_options(executor="nowhere"):
        (error,) = default_task_backend.check()
        assert error.id == "django_executors.E003"
        assert error.msg.startswith("TASKS['default']['OPTIONS']['executor']: EXECUTORS has no alias")
        with pytest.raises(ImproperlyConfigured, match="EXECUTORS has no alias 'nowhere'"):
            tasks.noop.enqueue()
    assert default_task_backend.check() == []


def test_checked_without_an_import() -> None:
    """The app in INSTALLED_APPS is enough, on Django 5.2 with that of `django-tasks`."""
    code = """
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.core.management.base import SystemCheckError

    apps = ["django_executors"] if django.VERSION >= (6, 0) else ["django_executors", "django_tasks"]
    backend = "django_executors.backends.ExecutorBackend"
    tasks = {"default": {"BACKEND": backend, "OPTIONS": {"executor": "mails"}}}
    settings.configure(INSTALLED_APPS=apps, TASKS=tasks)
    django.setup()
    try:
        call_command("check")
    except SystemCheckError as error:
        print("django_executors.E003" in str(error))
    """
    ended = run_python(code, settings=None, warnings="ignore")
    assert ended.stdout == "True\n", ended.stderr
