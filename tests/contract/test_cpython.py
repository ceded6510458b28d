"""CPython's own tests of the pools, with our classes in the standard ones' places."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.support.subprocesses import run_python

#: How many of its tests run at least, with how many pools and tasks.
LEAST = {"thread": (40, 40, 100), "process": (150, 150, 1000)}


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("kind", LEAST)
def test_cpythons_own_tests(kind: str) -> None:
    """All of them pass, without settings, and it is our class that they ran."""
    if importlib.util.find_spec("test") is None or not importlib.util.find_spec(
        "test.test_concurrent_futures"
    ):
        pytest.skip("this Python comes without the test module test.test_concurrent_futures")
    finished = run_python(
        f"from tests.support.cpython_pools import main; main({kind!r})",
        settings=None,
        warnings="default",
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    outcome = json.loads(finished.stdout.splitlines()[-1])
    assert outcome["failed"] == [], finished.stderr
    found = outcome["run"] - len(outcome["skipped"]), outcome["pools"], outcome["submits"]
    assert all(number >= least for number, least in zip(found, LEAST[kind], strict=True)), found
