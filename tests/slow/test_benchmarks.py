"""The benchmark runs, and fails on a wrong result: never on a time."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.contestants import CLOSING, LEAKING, OURS
from benchmarks.ratios import Block, Figure
from benchmarks.servers import no_database
from benchmarks.workloads import NOOP
from tests.support.subprocesses import ROOT, environment, run_python

RUN = ROOT / "benchmarks" / "run.py"
WRITTEN = [ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs" / "images" / "benchmark.svg"]

#: Exchange one workload for another that does its work wrong, and run it.
WITH_A_MISTAKE = """
import dataclasses, sys
from benchmarks import project
project.set_up()
from benchmarks import workloads
workloads.WORKLOADS = [
    dataclasses.replace(each, task={task}) if each.key == {key!r} else each
    for each in workloads.WORKLOADS
]
from benchmarks.command import main
sys.exit(main(["--quick", "--server", {server!r}, "--workload", {key!r}]))
"""


def state_of(paths: list[Path]) -> list[int | None]:
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


@pytest.mark.timeout(520)
def test_all_results_are_right_in_a_quick_run(tmp_path: Path) -> None:
    """Each contestant does each kind of task, on three servers; what is written names no folder."""
    before = state_of(WRITTEN)
    page, picture = tmp_path / "RESULTS.md", tmp_path / "speed.svg"
    chosen = ["--quick", "--server", "none", "--server", "tcp", "--server", "sqlite"]
    done = subprocess.run(
        [sys.executable, str(RUN), *chosen, "--out", str(page), f"--svg={picture}"],
        cwd=ROOT,
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every result was right." in done.stdout
    assert state_of(WRITTEN) == before
    if os.environ.get("REQUIRE_ALL_SERVERS"):
        assert "does not run" not in done.stdout
    text = page.read_text()
    assert f"`python benchmarks/run.py {' '.join(chosen)}`" in text
    assert "](speed.svg)" in text
    assert "## SQLite" in text
    assert ET.parse(picture).getroot().tag.endswith("svg")
    for folder in (str(tmp_path), str(ROOT), str(Path.home())):
        assert folder not in text + picture.read_text()


@pytest.mark.parametrize(
    ("server", "key", "task"),
    [
        pytest.param("none", "noop", "lambda number: min(number, 9)", id="a wrong result"),
        pytest.param("sqlite", "insert", "lambda number: number", id="a row that is not there"),
    ],
)
def test_a_wrong_result_ends_the_run_with_1(server: str, key: str, task: str) -> None:
    """What a task returned is checked, and what it left in the database."""
    done = run_python(WITH_A_MISTAKE.format(server=server, key=key, task=task), settings=None)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Wrong: " in done.stderr


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was slow for everybody changes no ratio."""
    seconds = {LEAKING: [1.0, 5.0, 1.0], OURS: [2.0, 10.0, 2.0]}
    block = Block(no_database(), NOOP, seconds)
    assert block.speed(OURS) == Figure(0.5, 0.5, 0.5)
    assert block.speed(OURS, against=CLOSING) is None
