"""`ExecutorBackend` on executors whose tasks run in other processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings

from django_executors import executors

from . import django_tasks_of_ours as tasks
from .django_tasks_of_ours import TaskResultStatus, heard
from .test_tasks_backend import finished, in_order
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off", "dask_sockets", "idle_before_and_after")

EXECUTORS = {
    "process": {"BACKEND": "django_executors.ProcessPoolExecutor", "OPTIONS": {"max_workers": 1}},
    "dask": {
        "BACKEND": "django_executors.dask.DaskExecutor",
        "OPTIONS": {"n_workers": 1, "threads_per_worker": 1},
    },
}


@pytest.fixture(scope="module", params=EXECUTORS, autouse=True)
def remote(request: pytest.FixtureRequest) -> Iterator[None]:
    with override_settings(EXECUTORS={"default": EXECUTORS[request.param]}):
        yield
        executors.shutdown()


def test_success() -> None:
    with heard() as signals:
        result = finished(tasks.create_and_double.enqueue(17), within=30)
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == 34
    assert in_order(result)
    (worker,) = result.worker_ids
    assert not worker.startswith(f"{os.getpid()}-")
    assert list(Entry.objects.values_list("name", flat=True)) == ["17"]
    assert [(name, str(status)) for name, _, status in signals] == [
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
    ]


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (tasks.fail, "builtins.ValueError"),
        (tasks.exit_thread, "builtins.SystemExit"),
        (tasks.interrupt, "builtins.KeyboardInterrupt"),
        (tasks.return_what_json_has_not, "builtins.TypeError"),
    ],
)
def test_failure(task: Any, kind: str) -> None:
    result = finished(task.enqueue(), within=30)
    assert result.status == TaskResultStatus.FAILED
    assert [error.exception_class_path for error in result.errors] == [kind]
    assert in_order(result)


def test_context_and_options() -> None:
    """The task knows its result's id, as it would in a thread; a coroutine function runs too."""
    result = tasks.own_id.enqueue()
    assert finished(result, within=30).return_value == result.id
    assert finished(tasks.count_async.enqueue(), within=30).return_value == 0


@pytest.mark.parametrize("commits", [True, False])
def test_on_commit(commits: bool) -> None:
    with transaction.atomic():
        Entry.objects.create(name="new")
        result = tasks.exists.enqueue("new")
        transaction.set_rollback(not commits)
    if commits:
        assert finished(result, within=30).return_value is True
    else:
        with pytest.raises(tasks.TaskResultDoesNotExist):
            result.refresh()
