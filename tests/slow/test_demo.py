"""The experiment counts right, and shows the ceiling where it is in force."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from demo.lab import report
from demo.lab.chart import chart
from demo.lab.measure import Run
from demo.lab.terminal import Terminal
from demo.lab.ways import WAYS
from demo.lab.workload import CEILING, Variant, variants
from private_servers import django_database
from tests.support.observers import PostgresObserver
from tests.support.subprocesses import ROOT, environment

LIMIT = 100
PLAIN, CEILED = (variant for variant in variants(quick=False) if variant.key in ("at-once", "ceiling"))


def run_of(way: str, variant: Variant, *, peak: int) -> Run:
    return Run(
        way=next(each for each in WAYS if each.key == way),
        variant=variant,
        peak=peak,
        left=0,
        seconds=1.0,
        jobs=1000,
        failures=0,
        first_failure="",
        rows=1000,
        right_rows=1000,
        connections_all=1,
        all_connections=0,
        samples=[(0.0, 0), (0.4, peak), (0.8, peak)],
    )


def runs(peak: int = CEILING) -> list[Run]:
    """What all ways did in both variants; `peak` is that of ours under the ceiling."""
    return [
        run_of(way.key, variant, peak=peak if way.key == "ours" and variant is CEILED else 90)
        for variant in (PLAIN, CEILED)
        for way in WAYS
    ]


def terminal(*, unicode: bool) -> Terminal:
    return Terminal(live=False, colour=False, unicode=unicode, width=80)


@pytest.mark.parametrize("unicode", [True, False], ids=["unicode", "ASCII"])
def test_chart_draws_the_ceiling_where_it_is_in_force(unicode: bool) -> None:
    """It is one labelled line, right above what stays below it, in the last column of the last row."""
    lines = chart(runs(), LIMIT, terminal(unicode=unicode)).splitlines()
    (number,) = (number for number, line in enumerate(lines) if "ceiling 16" in line)
    dash = "╌" if unicode else "-"
    assert lines.index("django-executors") < number
    assert lines[number].endswith(f"  {dash * 12} ceiling 16 {dash * 12}")
    assert lines[number + 1].startswith("    0 ")


def texts(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in ET.fromstring(svg).iterfind(".//{*}text")]


@pytest.mark.parametrize(
    ("peak", "says"),
    [
        (16, "Under its ceiling of 16 django-executors had at most 16 connections, and 0 of 1000 jobs"),
        (17, "django-executors had 17 connections: that is more than its ceiling of 16."),
    ],
)
def test_verdict_on_the_ceiling(peak: int, says: str) -> None:
    """It says whether the ceiling held."""
    _, line = report.verdict(runs(peak)).splitlines()
    assert line.startswith(says)


@pytest.mark.timeout(200)
def test_quick_run(tmp_path: Path) -> None:
    """Ours never has more than the ceiling allows and fails in nothing; nobody's log is in the way."""
    numbers, svg = tmp_path / "numbers.json", tmp_path / "experiment.svg"
    script, options = str(ROOT / "demo" / "experiment.py"), ["--quick", "--no-gc"]
    variables = environment(None)
    variables.pop("DATABASE_URL", None)  # a server of its own
    done = subprocess.run(
        [sys.executable, script, *options, "--svg", str(svg), "--json", str(numbers)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
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


COUNT = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)


def test_the_demo_projects_tests(postgres: PostgresObserver) -> None:
    """All of them pass in Django's runner, which then can drop its databases."""
    url = environment(None)["TEST_POSTGRES_URL"]
    command = ["-m", "django", "test", "shop", "--noinput", "--parallel", "2"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
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
