"""The experiment counts right, and the demo project's own tests pass."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from demo.lab.workload import CEILING
from private_servers import django_database
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import ROOT, environment, python


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ET.fromstring(svg).iterfind(".//{*}text")]


@pytest.mark.timeout(200)
def test_quick_run(tmp_path: Path) -> None:
    """Ours never has more than the ceiling allows and fails in nothing; nobody's log is in the way."""
    numbers, svg = tmp_path / "numbers.json", tmp_path / "experiment.svg"
    script, options = str(ROOT / "demo" / "experiment.py"), ["--quick", "--no-gc"]
    variables = environment(None)
    variables.pop("DATABASE_URL", None)  # a server of its own
    options += ["--svg", str(svg), "--json", str(numbers)]
    done = python(script, *options, variables=variables, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "all of the right amount" in done.stdout
    records: list[dict[str, Any]] = json.loads(numbers.read_text(encoding="utf-8"))["runs"]
    assert all(record["rows"] == record["jobs"] - record["failures"] for record in records)
    standard, _, ours = (record for record in records if record["variant"] == "ceiling")
    assert standard["jobs"] == ours["jobs"] == 200
    assert standard["peak"] > CEILING  # whether the server refuses some depends on when they ask
    assert (ours["failures"], ours["left"], ours["all_connections"]) == (0, 0, 0)
    assert 1 < ours["peak"] <= ours["ceiling"] == CEILING
    assert "ceiling 16" in done.stdout
    assert "ceiling 16" in texts(svg.read_text(encoding="utf-8"))


def test_the_demo_projects_tests(postgres: PostgresObserver) -> None:
    """All of them pass in Django's runner, which then can drop its databases."""
    url = environment(None)["TEST_POSTGRES_URL"]
    command = ["-m", "django", "test", "shop", "--noinput", "--parallel", "2"]
    variables = environment("settings") | {"DATABASE_URL": url}
    done = python("-W", "error", *command, cwd=ROOT / "demo", variables=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 6 tests" in done.stderr
    name = django_database(url)["NAME"]
    assert (
        postgres.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", f"test_{name}%") == []
    )
