"""Run the tests of this project with one runner, in turn and in parallel; print what came of it.

A script: `python -m tests.projects.drain_project.run RUNNER`. It prints a line of JSON for each run:
its exit code, and the test databases that it left on the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

TEST_DATABASES = r"SELECT datname FROM pg_database WHERE datname LIKE 'test\_%'"
HERE = Path(__file__).parent


def run_django(parallel: int) -> int:
    from django.test.runner import DiscoverRunner

    from .cases import TESTS

    class Runner(DiscoverRunner):
        def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> int:
            failures: int = super().suite_result(suite, result, **kwargs)
            return failures or abs(result.testsRun - TESTS)

    return Runner(verbosity=0, interactive=False, parallel=parallel).run_tests([f"{__package__}.cases"])


def run_pytest(*options: str) -> int:
    import pytest

    return int(pytest.main(["-q", "-c", str(HERE / "pytest.ini"), *options, str(HERE / "cases.py")]))


#: How often each kind of run is made, and the name of its database.
RUNS: dict[str, list[tuple[int, str, Callable[[], int]]]] = {
    "django": [
        (2, "test_drained", lambda: run_django(1)),
        (1, r"test_drained_\d", lambda: run_django(2)),
    ],
    "pytest": [
        (2, "test_drained", run_pytest),
        (1, r"test_drained_gw\d", lambda: run_pytest("-n", "2")),
    ],
}


def main(runner: str) -> None:
    if runner == "django":
        import django

        os.environ["DJANGO_SETTINGS_MODULE"] = f"{__package__}.settings"
        django.setup()
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], autocommit=True) as observer:
        for times, pattern, run in RUNS[runner]:
            os.environ["DATABASE_PATTERN"] = pattern
            for _ in range(times):
                code = run()
                left = [name for (name,) in observer.execute(TEST_DATABASES)]
                print(json.dumps({"code": code, "left": left}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
