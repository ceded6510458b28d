"""Run the tests of this project with one runner, many times in this process; print what came of it.

A script: `python -m tests.projects.drain_project.run RUNNER TIMES`. It prints a line of JSON for each
run: its exit code, and the test databases that it left on the server.
"""

from __future__ import annotations

import json
import os
import sys
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


RUNNERS = {
    "django": lambda: run_django(1),
    "django --parallel 2": lambda: run_django(2),
    "pytest": run_pytest,
    "pytest -n 2": lambda: run_pytest("-n", "2"),
}


def main(runner: str, times: str) -> None:
    if runner.startswith("django"):
        import django

        django.setup()
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], autocommit=True) as observer:
        for _ in range(int(times)):
            code = RUNNERS[runner]()
            left = [name for (name,) in observer.execute(TEST_DATABASES)]
            print(json.dumps({"code": code, "left": left}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
