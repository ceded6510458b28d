"""Views whose tasks run async code, and middleware between them and the server."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from typing import TypeVar

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import translation
from django.utils.decorators import async_only_middleware, sync_only_middleware

from django_executors import ThreadPoolExecutor

T = TypeVar("T")

pool = ThreadPoolExecutor(2)


async def count() -> int:
    from tests.projects.testapp.models import Entry

    async with asyncio.timeout(20):
        return await Entry.objects.acount()


def with_asyncio_run() -> int:
    return asyncio.run(count())


def with_async_to_sync() -> int:
    return async_to_sync(count)()


def with_both() -> int:
    return with_asyncio_run() + with_async_to_sync() + with_asyncio_run()


TASKS: dict[str, Callable[[], int]] = {
    task.__name__: task for task in (with_asyncio_run, with_async_to_sync, with_both)
}


def submit(name: str) -> concurrent.futures.Future[str]:
    return pool.submit(lambda: f"{TASKS[name]()} {translation.get_language()}")


def sync_view(request: HttpRequest, name: str) -> HttpResponse:
    with translation.override("de"):
        return HttpResponse(submit(name).result(20))


async def async_view(request: HttpRequest, name: str) -> HttpResponse:
    with translation.override("de"):
        future = submit(name)
    return HttpResponse(await future)


def view_that_awaits(request: HttpRequest, name: str) -> HttpResponse:
    return async_to_sync(async_view)(request, name)


@sync_only_middleware
def sync_middleware(get_response: Callable[[HttpRequest], T]) -> Callable[[HttpRequest], T]:
    return lambda request: get_response(request)


@async_only_middleware
def async_middleware(
    get_response: Callable[[HttpRequest], Awaitable[T]],
) -> Callable[[HttpRequest], Awaitable[T]]:
    async def middleware(request: HttpRequest) -> T:
        return await get_response(request)

    return middleware


urlpatterns = [
    path("sync_view/<name>", sync_view),
    path("async_view/<name>", async_view),
    path("view_that_awaits/<name>", view_that_awaits),
]
