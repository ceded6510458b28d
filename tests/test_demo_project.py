"""The demo project's own tests pass, and leave nothing on the server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from private_servers import django_database

from .observers import PostgresObserver
from .subprocesses import ROOT, environment

COUNT = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)


@pytest.mark.parametrize("arguments", [(), ("--parallel", "2")], ids=["in turn", "in parallel"])
def test_the_demo_projects_tests(postgres: PostgresObserver, arguments: tuple[str, ...]) -> None:
    """All of them pass in Django's runner, which then can drop its databases."""
    url = environment(None)["TEST_POSTGRES_URL"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "test", "shop", "--noinput", *arguments],
        cwd=ROOT / "demo",
        env=environment("settings") | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = COUNT.search(done.stderr)
    assert found is not None
    assert int(found[1]) == 6, done.stderr
    name = django_database(url)["NAME"]
    assert (
        postgres.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", f"test_{name}%") == []
    )
