"""The tests of a small project, which leave their tasks running: each run drops its database."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .drain_project.run import TEST_DATABASES
from .observers import PostgresObserver
from .subprocesses import ROOT, environment

SETTINGS = "tests.drain_project.settings"
#: How often with which runner, and the name of the database then. All in all 50 times.
REPEATS = {
    "django": (18, "test_drained"),
    "django --parallel 2": (14, r"test_drained_\d"),
    "pytest": (14, "test_drained"),
    "pytest -n 2": (4, r"test_drained_gw\d"),
}


@pytest.mark.usefixtures("no_test_database_before")
@pytest.mark.timeout(150)
@pytest.mark.parametrize("runner", REPEATS)
def test_drops_the_database(runner: str, postgres: PostgresObserver) -> None:
    """Every run succeeds, and no test database is on the server after it."""
    times, pattern = REPEATS[runner]
    variables = environment(SETTINGS if runner.startswith("django") else None)
    variables.pop("PYTEST_ADDOPTS", None)
    finished = subprocess.run(
        [sys.executable, "-m", "tests.drain_project.run", runner, str(times)],
        cwd=ROOT,
        env=variables | {"DATABASE_PATTERN": pattern},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=140,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    runs = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"code"')]
    assert runs == [{"code": 0, "left": []}] * times, finished.stdout
    assert postgres.execute(TEST_DATABASES) == []
    assert not postgres.left("test_drained")
