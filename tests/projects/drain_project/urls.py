"""One view, which leaves work to the executor."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from .work import submit_many


def view(request: HttpRequest) -> HttpResponse:
    submit_many("of a request")
    return HttpResponse("submitted")


urlpatterns = [path("", view)]
