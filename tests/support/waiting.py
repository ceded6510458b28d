"""Waiting for what another process does: a poll with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(read: Callable[[], T], good: Callable[[T], bool] = bool, *, within: float = 10.0) -> T:
    """Read again and again until the value is good, for `within` seconds, and return the last one."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not good(value := read()) and time.monotonic() < deadline:
        pause.wait(0.005)
    return value
