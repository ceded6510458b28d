"""What the shapes share: how they were before, to see that they leaked then."""

from __future__ import annotations

import concurrent.futures

import pytest


@pytest.fixture
def old_import_line(
    leaked_before: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the shape's file say `from concurrent.futures import ThreadPoolExecutor` again."""
    monkeypatch.setattr(request.module, "ThreadPoolExecutor", concurrent.futures.ThreadPoolExecutor)
