"""What a task inherits of its submitter's world, all of it at once."""

from __future__ import annotations

import contextvars
from typing import NamedTuple

from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


class World(NamedTuple):
    """All that a task inherits."""

    variable: str
    language: str | None
    time_zone: str
    urlconf: str | None
    script_prefix: str

    def enter(self, _: object = None) -> None:
        VARIABLE.set(self.variable)
        if self.language is None:
            translation.deactivate_all()
        else:
            translation.activate(self.language)
        timezone.activate(self.time_zone)
        set_urlconf(self.urlconf)
        set_script_prefix(self.script_prefix)


DEFAULT = World("", "en-us", "America/Chicago", None, "/")
GERMAN = World("a German's", "de", "Europe/Berlin", "urls.of.germans", "/de/")
FRENCH = World("a Frenchman's", "fr", "Europe/Paris", "urls.of.frenchmen", "/fr/")


def world(_: object = None) -> World:
    zone = timezone.get_current_timezone_name()
    return World(VARIABLE.get(), translation.get_language(), zone, get_urlconf(), get_script_prefix())


def leave() -> None:
    """Be as the process was at first."""
    VARIABLE.set("")
    translation.deactivate()
    timezone.deactivate()
    set_urlconf(None)
    set_script_prefix("/")
