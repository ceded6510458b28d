"""CPython's own tests of the thread pool, with our class in the standard one's place."""

from __future__ import annotations

import importlib.util
import json

import pytest

from .subprocesses import run_python


def ships_its_tests() -> bool:
    try:
        return importlib.util.find_spec("test.test_concurrent_futures") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.timeout(200)
@pytest.mark.skipif(
    not ships_its_tests(),
    reason="this Python comes without the test module test.test_concurrent_futures",
)
def test_cpythons_own_tests() -> None:
    """All of them pass, without settings, and it is our class that they ran."""
    finished = run_python(
        "from tests.cpython_thread_pool import main; main()",
        settings=None,
        warnings="default",
        timeout=180,
    )
    assert finished.returncode == 0, finished.stderr
    outcome = json.loads(finished.stdout.splitlines()[-1])
    assert outcome["failed"] == [], finished.stderr
    assert outcome["run"] - len(outcome["skipped"]) >= 40
    assert outcome["pools"] >= 40
    assert outcome["submits"] > 100
