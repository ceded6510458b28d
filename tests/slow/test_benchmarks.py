"""The benchmark runs, and fails on a wrong result: never on a time."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.subprocesses import ROOT, environment, python, run_python

RUN = ROOT / "benchmarks" / "run.py"
WRITTEN = [ROOT / "benchmarks" / "RESULTS.md", ROOT / "docs" / "images" / "benchmark.svg"]

#: Exchange one workload for another that does its work wrong, and run it.
WITH_A_MISTAKE = """
import dataclasses, sys
from benchmarks import project
project.set_up()
from benchmarks import workloads
workloads.WORKLOADS = [
    dataclasses.replace(each, task=lambda number: number) if each.key == "insert" else each
    for each in workloads.WORKLOADS
]
from benchmarks.command import main
sys.exit(main(["--quick", "--server", "sqlite", "--workload", "insert"]))
"""


def state_of(paths: list[Path]) -> list[int | None]:
    return [path.stat().st_mtime_ns if path.exists() else None for path in paths]


@pytest.mark.timeout(520)
def test_all_results_are_right_in_a_quick_run(tmp_path: Path) -> None:
    """Each contestant does each kind of task; what is written names no folder."""
    before = state_of(WRITTEN)
    page, picture = tmp_path / "RESULTS.md", tmp_path / "speed.svg"
    chosen = ["--quick", "--server", "none", "--server", "sqlite"]
    written = ["--out", str(page), f"--svg={picture}"]
    done = python(str(RUN), *chosen, *written, variables=environment(None), timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every result was right." in done.stdout
    assert state_of(WRITTEN) == before
    if os.environ.get("REQUIRE_ALL_SERVERS"):
        assert "does not run" not in done.stdout
    text = page.read_text()
    assert f"`python benchmarks/run.py {' '.join(chosen)}`" in text
    assert "](speed.svg)" in text
    for heading in ("SQLite, a file", "No database: CPU of one worker", "Cost of a no-op", "Memory"):
        assert f"## {heading}" in text
    assert ET.parse(picture).getroot().tag.endswith("svg")
    assert "Longer is faster." in picture.read_text()
    for folder in (str(tmp_path), str(ROOT), str(Path.home())):
        assert folder not in text + picture.read_text()


def test_a_missing_row_ends_the_run_with_1() -> None:
    """What a task left in the database is checked, as what it returned is."""
    done = run_python(WITH_A_MISTAKE, settings=None)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Wrong: " in done.stderr
