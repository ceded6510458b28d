"""A small project that a pytest of its own runs, and what came of it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.subprocesses import environment

OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) \S+?::(\S+)", re.MULTILINE)


class Project:
    """A folder with a pytest.ini and tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.write(
            "pytest.ini", "[pytest]\naddopts = --strict-markers --strict-config -p no:cacheprovider"
        )

    def write(self, name: str, *text: str) -> None:
        (self._folder / name).write_text("\n".join(map(textwrap.dedent, text)))

    def add_setting(self, line: str) -> None:
        with (self._folder / "pytest.ini").open("a") as ini:
            ini.write(f"\n{line}")

    def start(self, *options: str) -> subprocess.Popen[str]:
        variables = environment(None)
        variables.pop("PYTEST_ADDOPTS", None)
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "pytest", "-rA", *options],
            cwd=self._folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> Run:
        return Run(self.start(*options))


class Run:
    """What came of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        try:
            self.output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        self.code = process.returncode
        found = OUTCOME.findall(self.output)
        self.passed, self.failed, self.errors = (
            sorted(name for outcome, name in found if outcome == wanted)
            for wanted in ("PASSED", "FAILED", "ERROR")
        )
