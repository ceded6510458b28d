"""What the shapes share: how they were before, to see that they leaked then."""

from __future__ import annotations

import concurrent.futures

import pytest
from django.db import connections


@pytest.fixture
def old_import_line(
    leaked_before: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the shape's file say `from concurrent.futures import ThreadPoolExecutor` again."""
    monkeypatch.setattr(request.module, "ThreadPoolExecutor", concurrent.futures.ThreadPoolExecutor)


@pytest.fixture(params=[0, None], ids=lambda age: f"CONN_MAX_AGE={age}")
def conn_max_age(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test at both ends."""
    for alias in ("default", "other"):
        monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", request.param)
