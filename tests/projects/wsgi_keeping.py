"""A small site for gunicorn whose processes keep the connection of their thread, under a name."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

application = get_wsgi_application()


def view(request: HttpRequest) -> HttpResponse:
    from tests.projects.testapp.models import Entry

    return HttpResponse(f"{os.getpid()} {Entry.objects.filter(name='a secret').count()}")


urlpatterns = [path("", view)]
