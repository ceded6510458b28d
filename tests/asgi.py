"""A small site for uvicorn: one sync view that queries, in a process without a garbage collector."""

from __future__ import annotations

import gc

from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

gc.disable()
application = get_asgi_application()


def count(request: HttpRequest) -> HttpResponse:
    from .testapp.models import Entry

    return HttpResponse(str(Entry.objects.count()))


urlpatterns = [path("", count)]
