"""A small site for uvicorn: views that query, in a process without a garbage collector."""

from __future__ import annotations

import gc

from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.projects import asgi_tasks

gc.disable()
application = get_asgi_application()


def count(request: HttpRequest) -> HttpResponse:
    from tests.projects.testapp.models import Entry

    return HttpResponse(str(Entry.objects.count()))


urlpatterns = [path("", count), *asgi_tasks.urlpatterns]
