"""A site with django-debug-toolbar: its pages, and what its SQL panel shows of them."""

from __future__ import annotations

import asyncio
import json

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from django_executors import ThreadPoolExecutor

pool = ThreadPoolExecutor(3)


def entries() -> QuerySet[object]:
    from tests.projects.testapp.models import Entry

    return Entry.objects.order_by("pk")


def count_entries() -> int:
    return entries().count()


def page(request: HttpRequest) -> HttpResponse:
    loaded = pool.load(entries())
    futures = [pool.submit(count_entries) for _ in range(3)]
    found = [entries().count(), *(each.result() for each in futures), len(loaded)]
    return HttpResponse(f"<html><body>{found}</body></html>")


async def async_page(request: HttpRequest) -> HttpResponse:
    found = await asyncio.gather(*(pool.submit(count_entries) for _ in range(4)))
    return HttpResponse(f"<html><body>{[*found, await entries().acount()]}</body></html>")


urlpatterns = [
    path("", page),
    path("async", async_page),
    path("__debug__/", include("debug_toolbar.urls")),
]


async def ask_async() -> None:
    from django.test import AsyncClient

    assert b"[0, 0, 0, 0, 0]" in (await AsyncClient().get("/async")).content


def main() -> None:
    """Ask for the page three times, and write what the panels show."""
    from debug_toolbar.toolbar import DebugToolbar
    from django.db import connections
    from django.test import Client

    toolbars = []
    DebugToolbar._created.connect(lambda **kwargs: toolbars.append(kwargs["toolbar"]), weak=False)
    for _ in range(3):
        assert b"[0, 0, 0, 0, 0]" in Client().get("/").content
    asyncio.run(ask_async())
    shown = []
    for toolbar in toolbars:
        stats = toolbar.get_panel_by_id("SQLPanel").get_stats()
        queries = stats.get("queries", [])
        numbers = [database["num_queries"] for _, database in stats.get("databases", [])]
        stacks = [[frame[2] for frame in each["stacktrace"]] for each in queries]
        shown.append({"queries": len(queries), "numbers": numbers, "stacks": stacks})
    pool.shutdown()
    connections.close_all()
    print(json.dumps(shown))
