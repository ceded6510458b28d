"""An executor that lives as long as the process, and what it is given to do."""

from __future__ import annotations

import threading

from django_executors import ThreadPoolExecutor
from tests.projects.testapp.models import Entry

POOL = ThreadPoolExecutor(4, "entries", conn_max_idle=60)


def add_later(name: str) -> None:
    """Query, take a while, and write: a test that submits this is over by then."""
    Entry.objects.count()
    threading.Event().wait(0.02)
    Entry.objects.create(name=name)


def submit_many(name: str) -> None:
    for number in range(6):
        POOL.submit(add_later, f"{name} {number}")
