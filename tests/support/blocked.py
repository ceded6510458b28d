"""Submitters that wait for room in a pool's queue."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from django_executors import ThreadPoolExecutor
from tests.support.gates import Gate


def full(gate: Gate, **options: Any) -> ThreadPoolExecutor:
    """Return a pool whose one worker is busy and whose queue of two is full."""
    pool = ThreadPoolExecutor(1, "of the test", max_pending=2, **options)
    pool.submit(gate)
    gate.wait_for()
    for _ in range(2):
        pool.submit(int)
    return pool


def blocked() -> int:
    """Count the threads by the name of `submitter` that wait for room."""
    idents = {thread.ident for thread in threading.enumerate() if thread.name.startswith("submitter")}
    return sum(_waits(frame) for ident, frame in sys._current_frames().items() if ident in idents)


def _waits(frame: Any) -> bool:
    """Tell whether it waits, and not only comes by: it is in a lock of the condition's own."""
    if (frame.f_code.co_filename, frame.f_code.co_name) != (threading.__file__, "wait"):
        return False
    return bool(frame.f_back.f_code.co_filename.endswith("bound.py"))


@pytest.fixture
def submitter() -> Iterator[concurrent.futures.Executor]:
    """Four threads beside, by the name of `submitter`."""
    with concurrent.futures.ThreadPoolExecutor(4, "submitter") as pool:
        yield pool
