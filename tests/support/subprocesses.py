"""Run a piece of code in a Python of its own, with the suite's servers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITH_APP = "tests.settings_with_app"


def environment(settings: str | None) -> dict[str, str]:
    """Return the environment in which a child of the suite finds what the suite finds."""
    found = os.environ | {"PYTHONPATH": os.pathsep.join(_path())}
    found.pop("DJANGO_SETTINGS_MODULE", None)
    if settings is not None:
        found["DJANGO_SETTINGS_MODULE"] = settings
    return found


def _path() -> list[str]:
    inherited = os.environ.get("PYTHONPATH")
    return [*([inherited] if inherited else []), str(ROOT), str(ROOT / "tools")]


def run_python(
    *code: str, settings: str | None, warnings: str = "always", timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run pieces of code, one after another, with these settings or none; return what came of it.

    Django is set up before them if there are settings; not by a variable that names them.
    """
    if settings is not None:
        code = ("import django\ndjango.setup()", *code)
    arguments = ["-W", warnings, "-c", "\n".join(map(textwrap.dedent, code))]
    return python(*arguments, variables=environment(settings) | variables, timeout=timeout)


def python(
    *arguments: str, variables: Mapping[str, str], cwd: Path = ROOT, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in this environment, and return what came of it."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
