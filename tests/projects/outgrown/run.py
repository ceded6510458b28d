"""Enqueue each task, wait for what becomes of it, and print that."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any

import django

from tests.support.waiting import wait_until

django.setup()

from django.db import transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

from tests.projects.django_tasks_of_ours import InvalidTask, TaskResultDoesNotExist  # noqa: E402
from tests.projects.outgrown import jobs  # noqa: E402
from tests.projects.testapp.models import Entry  # noqa: E402


def finished(result: Any) -> Any:
    def refreshed() -> Any:
        result.refresh()
        return result

    assert wait_until(refreshed, lambda found: found.is_finished, within=40).is_finished, result
    return result


added = finished(jobs.add_entry.enqueue("an entry"))
counted = finished(jobs.count_entries.enqueue())
failed = finished(jobs.fail.enqueue("wrong"))
assert added.errors == counted.errors == [], (added, counted)
with transaction.atomic():
    undone = jobs.add_entry.enqueue("of a transaction that rolls back")
    transaction.set_rollback(True)
try:
    rolled_back = str(finished(undone).status)
except TaskResultDoesNotExist:
    rolled_back = "never enqueued"
due = timezone.now() + timedelta(seconds=1)
try:
    later = jobs.add_entry.using(run_after=due).enqueue("a later one")
    # Its result is not asked for before: while RQ's scheduler moves a job, django-tasks-rq finds none.
    assert wait_until(Entry.objects.filter(name="a later one").exists, within=40)
    deferred = str(finished(later).status)
except InvalidTask:
    deferred = "refused"
backend = jobs.add_entry.get_backend()
print(
    json.dumps(
        {
            "rolled back": rolled_back,
            "run after": deferred,
            "has": [name for name in ("defer", "priority") if getattr(backend, f"supports_{name}")],
            "values": [added.return_value, counted.return_value],
            "statuses": [str(result.status) for result in (added, counted, failed)],
            "errors": [error.exception_class_path for error in failed.errors],
            "attempts": [result.attempts for result in (added, counted, failed)],
            "told": "LookupError: wrong" in failed.errors[0].traceback,
            "elsewhere": all(
                str(os.getpid()) not in result.worker_ids[0] for result in (added, counted)
            ),
        }
    )
)
sys.stdout.flush()
