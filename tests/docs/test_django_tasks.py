"""The code of `docs/django-tasks.md`, which includes it from here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.http import Http404
from django.test import RequestFactory, override_settings

from django_executors import executors
from django_executors.backends import ExecutorBackend
from tests.projects.django_tasks_of_ours import task_backends
from tests.projects.task_views import look, start
from tests.projects.testapp.models import Entry
from tests.support.pages import TUTORIAL, defined_by, plain_blocks
from tests.support.waiting import wait_until

(SETTINGS,) = plain_blocks(TUTORIAL.with_name("django-tasks.md"))


def test_the_page() -> None:
    """With the page's setting one view starts the task, and the other says what became of it."""
    Entry.objects.create(name="apple")
    request = RequestFactory().get("/")

    def answer() -> Any:
        return json.loads(look(request, started["id"]).content)

    with override_settings(TASKS=defined_by(SETTINGS)["TASKS"], EXECUTORS={}):
        assert type(task_backends["default"]) is ExecutorBackend
        started = json.loads(start(request, "app").content)
        assert wait_until(answer, lambda found: found["value"]) == {"status": "SUCCESSFUL", "value": 1}
        with pytest.raises(Http404):
            look(request, "nothing")
        executors.shutdown()
