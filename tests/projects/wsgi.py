"""A small site for gunicorn: a view whose pool is the module's, and was used before the fork."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_executors import ThreadPoolExecutor

application = get_wsgi_application()
pool = ThreadPoolExecutor(4)


def count(_: object = None) -> int:
    from tests.projects.testapp.models import Entry

    return Entry.objects.count()


def view(request: HttpRequest) -> HttpResponse:
    counted = sum(pool.map(count, range(3)))
    return HttpResponse(f"{os.getpid()} {os.getppid()} {counted}")


urlpatterns = [path("", view)]
assert list(pool.map(count, range(8))) == [0] * 8
warm = [pool.submit(count) for _ in range(50)]  # some of it runs while gunicorn forks
