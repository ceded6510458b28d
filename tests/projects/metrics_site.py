"""A small site for gunicorn: tasks, and the view that Prometheus asks."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_executors import executors
from tests.projects.metrics_view import metrics_of_all

application = get_wsgi_application()

if "TEST_REGISTER" in os.environ:  # as in AppConfig.ready: before the fork, with --preload
    from django_executors.metrics import prometheus

    prometheus.register()


def submit(request: HttpRequest, count: int) -> HttpResponse:
    """Run so many tasks, each a query."""
    from tests.projects.testapp.models import Entry

    futures = [executors["default"].submit(Entry.objects.count) for _ in range(count)]
    for future in futures:
        future.result(20)
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("submit/<int:count>", submit), path("metrics", metrics_of_all)]
