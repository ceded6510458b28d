"""The code of `docs/queue.md`, which includes it from here."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import partial

import pytest
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import RequestFactory

from django_executors import DeadlockError, QueueFull, ThreadPoolExecutor

from .gates import Gate
from .testapp.models import Entry
from .waiting import wait_until


def rebuild_report(pk: int) -> None:
    if pk < 0:
        raise ValueError(pk)


confirmed: list[str] = []


def confirm(pk: int) -> None:
    confirmed.append(Entry.objects.get(pk=pk).name)


# view: begin
pool = ThreadPoolExecutor(4, max_pending=100, when_full="raise")


def rebuild(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        pool.submit(rebuild_report, pk)
    except QueueFull:
        return HttpResponse(status=503, headers={"Retry-After": "5"})
    return HttpResponse(status=202)


# view: end


# metrics: begin
def metrics(request: HttpRequest) -> HttpResponse:
    return JsonResponse(dataclasses.asdict(pool.stats()))


# metrics: end


# commit: begin
def order(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        entry = Entry.objects.create(name=request.POST["name"])
        transaction.on_commit(partial(pool.submit, confirm, entry.pk))
    return HttpResponse(status=201)


# commit: end


def is_idle() -> bool:
    stats = pool.stats()
    return stats.pending == stats.busy == 0


def test_the_view(gate: Gate) -> None:
    """It takes 100 requests' tasks beside those that run, and refuses the next one."""
    request = RequestFactory().post("/")
    for _ in range(4):
        pool.submit(gate)
    gate.wait_for(4)
    assert [rebuild(request, 1).status_code for _ in range(101)] == [202] * 100 + [503]
    gate.open()
    assert wait_until(is_idle, within=10)
    assert rebuild(request, 1).status_code == 202


def test_after_the_commit(caplog: pytest.LogCaptureFixture) -> None:
    """The task sees the row, and nothing is logged."""
    assert order(RequestFactory().post("/", {"name": "mine"})).status_code == 201
    assert wait_until(lambda: confirmed) == ["mine"]
    assert caplog.records == []


def test_the_metrics() -> None:
    """The numbers are JSON."""
    pool.submit(int).result(10)
    assert json.loads(metrics(RequestFactory().get("/")).content)["completed"] >= 1


def test_the_record(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a task that the view has started is logged as the page says."""
    assert rebuild(RequestFactory().post("/"), -1).status_code == 202

    def errors() -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.levelno == logging.ERROR]

    (record,) = wait_until(errors)
    name = "tests.test_docs_queue.rebuild_report"
    assert record.getMessage() == f"task={name} failed, and nobody has asked for its result"


def test_the_deadlock() -> None:
    """A task that waits for one of a pool without a free worker gets the error that the page shows."""

    def report() -> int:
        return pool.submit(int).result()

    with ThreadPoolExecutor(1, "reports") as pool, pytest.raises(DeadlockError) as caught:
        pool.submit(report).result(10)
    assert str(caught.value) == (
        "a wait for a task of the worker's own pool that could never end: "
        "executor=reports workers=1 waiting=1 pending=1\n"
        "task=tests.test_docs_queue.test_the_deadlock.<locals>.report waits for task=builtins.int"
    )
