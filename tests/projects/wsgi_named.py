"""A small site for gunicorn, whose views submit to named executors, each task a row."""

from __future__ import annotations

import os
from concurrent.futures import Future

from django.core.wsgi import get_wsgi_application
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from django_executors import executors

application = get_wsgi_application()

from tests.projects import django_tasks_of_ours as tasks  # noqa: E402
from tests.projects.django_tasks_of_ours import TaskResultStatus  # noqa: E402
from tests.projects.testapp.models import Entry  # noqa: E402

#: Of each task that was to look for its request's row, whether it was there.
found: list[bool] = []
futures = []


def submit_all(first: int, count: int) -> list[Future[Entry]]:
    """Have rows made of so many numbers."""
    return [
        executors["default"].submit(Entry.objects.create, name=str(number))
        for number in range(first, first + count)
    ]


def submit(request: HttpRequest, first: int, count: int) -> HttpResponse:
    """Do so with a connection of the request's own, to a database that the tasks do not use."""
    Entry.objects.using("other").exists()
    submit_all(first, count)
    return HttpResponse(str(os.getpid()))


def look(pk: int) -> None:
    found.append(Entry.objects.filter(pk=pk).exists())


def create() -> None:
    """Make a row, and have a task look for it."""
    entry = Entry.objects.create(name="of a request")
    futures.append(executors["default"].submit_on_commit(look, entry.pk))


def order(request: HttpRequest, ending: str) -> HttpResponse:
    """Do so in the request's transaction, which ends so."""
    if ending == "inner":
        Entry.objects.create(name="of the outer transaction")
        try:
            with transaction.atomic():
                create()
                raise LookupError
        except LookupError:
            return HttpResponse()
    create()
    if ending == "set_rollback":
        transaction.set_rollback(True)
    elif ending == "error":
        raise LookupError
    return HttpResponse()


#: Of each number the id of its task's result.
enqueued: dict[int, str] = {}


def enqueue(request: HttpRequest, first: int, count: int) -> HttpResponse:
    """The same by Django's Tasks."""
    for number in range(first, first + count):
        enqueued[number] = tasks.create_and_double.enqueue(number).id
    return HttpResponse()


def results(request: HttpRequest) -> HttpResponse:
    """Count those that are finished and right, and those that are said to wait and have run."""
    ran = tasks.created.copy()
    found = {number: tasks.own_result(result_id) for number, result_id in enqueued.copy().items()}
    return JsonResponse(
        {
            "right": sum(
                result.is_finished and result.return_value == 2 * number
                for number, result in found.items()
            ),
            "wrong": sum(
                number in ran and result.status == TaskResultStatus.READY
                for number, result in found.items()
            ),
        }
    )


def numbers(request: HttpRequest) -> HttpResponse:
    stats = executors["default"].stats()
    return JsonResponse(
        {
            "pid": os.getpid(),
            "unfinished": stats.pending + stats.busy,
            "submitted": stats.submitted,
            "found": found.count(True),
            "not found": found.count(False),
            "cancelled": sum(future.cancelled() for future in futures),
        }
    )


urlpatterns = [
    path("submit/<int:first>/<int:count>", submit),
    path("order/<ending>", order),
    path("enqueue/<int:first>/<int:count>", enqueue),
    path("results", results),
    path("numbers", numbers),
]
