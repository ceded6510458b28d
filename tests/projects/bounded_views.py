"""Views of `docs/queue.md`, which includes them from here."""

# view: begin
import dataclasses

from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse

from django_executors import QueueFull, ThreadPoolExecutor

# view: end
from tests.projects.testapp.models import Entry


def rebuild_report(pk: int) -> None:
    if pk < 0:
        raise ValueError(pk)


confirmed: list[str] = []


def confirm(pk: int) -> None:
    confirmed.append(Entry.objects.get(pk=pk).name)


# view: again
reports = ThreadPoolExecutor(4, max_pending=100, when_full="raise")


def rebuild(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        reports.submit(rebuild_report, pk)
    except QueueFull:
        return HttpResponse(status=503, headers={"Retry-After": "5"})
    return HttpResponse(status=202)


# commit: begin
mails = ThreadPoolExecutor(2)


def order(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        entry = Entry.objects.create(name=request.POST["name"])
        mails.submit_on_commit(confirm, entry.pk)
    return HttpResponse(status=201)


# metrics: begin
def metrics(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dataclasses.asdict(reports.stats()))
