"""What the shapes share: how they were before, to see that they leaked then."""

from __future__ import annotations

import concurrent.futures
import gc
import warnings
from collections.abc import Iterator

import pytest

from tests.observers import PostgresObserver
from tests.waiting import wait_until


@pytest.fixture
def leaked_before(collector_off: None, postgres: PostgresObserver) -> Iterator[None]:
    """Let the test leak, and collect afterwards what it has leaked."""
    yield

    def collect() -> set[int]:
        gc.collect()
        return postgres.backends("app") | postgres.backends("other")

    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        wait_until(collect, lambda pids: not pids)


@pytest.fixture
def old_import_line(
    leaked_before: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the shape's file say `from concurrent.futures import ThreadPoolExecutor` again."""
    monkeypatch.setattr(request.module, "ThreadPoolExecutor", concurrent.futures.ThreadPoolExecutor)
