"""A site whose pool of processes is made, and used, before gunicorn forks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import django

from django_executors import ProcessPoolExecutor

django.setup()

from tests.support.process_tasks import process_id  # noqa: E402

pool = ProcessPoolExecutor(2)
pool.submit(process_id).result(20)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    found = pool.submit(process_id).result(20)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {found}".encode()]
