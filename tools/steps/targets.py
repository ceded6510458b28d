"""The targets themselves: demo, site, test, bench, docs, clean."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import pythons
from .checks import Outcome, Result, missing, run_check, run_pytests, run_shown, summarize
from .environments import (
    ROOT,
    Environment,
    Trouble,
    last_line,
    mariadb_is_missing,
    run_quietly,
    say,
)
from .stopping import Stopped, stop_on_signals

# The lowest version of asgiref that pyproject.toml allows. With it, as with 3.11, a context that is
# copied to another thread has Django's cache clients, its language and its time zone in it; with newer
# ones it has not. Both are tested.
OLDEST_DJANGO = ("django~=5.2.0", "asgiref~=3.10.0")
NEWEST_DJANGO = ("django~=6.1.0", "asgiref>=3.13")
NEWEST_PYTHON = "3.13"

RUBBISH = [
    *(".venv*", "build", "dist", "docs/_build", "src/*.egg-info", ".coverage", ".coverage.*", "htmlcov"),
    *(".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    "demo/experiment.svg",
    *(f"{folder}/**/__pycache__" for folder in ("src", "tests", "typing_tests")),
    *(f"{folder}/**/__pycache__" for folder in ("demo", "benchmarks", "tools", "docs")),
]


def main(arguments: Sequence[str]) -> int:
    """Run the target that the command line names."""
    targets: dict[str, Callable[[Sequence[str]], int]] = {
        "demo": demo,
        "site": site,
        "test": test,
        "bench": bench,
        "docs": docs,
        "clean": clean,
    }
    if not arguments or arguments[0] not in targets:
        say(f"usage: python3 tools/project.py {'|'.join(targets)}")
        return 2
    stop_on_signals()
    try:
        return targets[arguments[0]](arguments[1:])
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except Stopped as stopped:
        return 128 + int(stopped.args[0])
    except KeyboardInterrupt:
        return 130


def demo(arguments: Sequence[str]) -> int:
    """Run the experiment; what follows is passed on to it."""
    environment = default_environment()
    environment.install(["demo"], server_given=bool(os.environ.get("DATABASE_URL")))
    experiment = ROOT / "demo" / "experiment.py"
    os.execv(environment.python, [str(environment.python), str(experiment), *arguments])


def site(arguments: Sequence[str]) -> int:
    """Serve the demo project's page until Ctrl-C; what follows is the address."""
    environment = default_environment()
    environment.install(["demo"], server_given=bool(os.environ.get("DATABASE_URL")))
    serve = ROOT / "demo" / "serve.py"
    os.execv(environment.python, [str(environment.python), str(serve), *arguments])


def bench(arguments: Sequence[str]) -> int:
    """Measure the speed beside the alternatives; what follows is passed on."""
    environment = default_environment()
    environment.install(["bench"])
    if why := mariadb_is_missing() or environment.try_install("mariadb"):
        say(f"without MariaDB: {why}")
    run = ROOT / "benchmarks" / "run.py"
    os.execv(environment.python, [str(environment.python), str(run), *arguments])


def docs(arguments: Sequence[str]) -> int:
    """Build the documentation afresh."""
    docs_environment().install(["docs"])
    shutil.rmtree(ROOT / "docs" / "_build", ignore_errors=True)
    if not run_shown("docs", sphinx()):
        return 1
    say("docs/_build/index.html")
    return 0


def clean(arguments: Sequence[str]) -> int:
    """Remove what the targets made."""
    for pattern in RUBBISH:
        for path in ROOT.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return 0


def test(arguments: Sequence[str]) -> int:
    """Run every check, also after one that failed, and say at the end how each ended."""
    chosen, for_pytest = parse(arguments)
    required = bool(os.environ.get("REQUIRE_ALL_SERVERS"))
    results: list[Result] = []
    environment = default_environment()
    environment.install(["test", "lint"])
    for name, command in static_checks(environment).items():
        if name in chosen:
            if name == "docs":
                docs_environment().install(["docs"])
                shutil.rmtree(ROOT / "docs" / "_build", ignore_errors=True)
            results.append(run_check(name, command))
    suites: dict[str, Sequence[str | Path]] = {}
    if "pytest" in chosen:
        results += mariadb(environment, required=required)
        run_quietly([*coverage(environment), "erase"])
        suites["pytest"] = [*coverage(environment), "run", "-m", "pytest", *for_pytest]
    if (newest := f"pytest-{NEWEST_PYTHON}") in chosen:
        if python := pythons.find_python((NEWEST_PYTHON,)):
            other = Environment(f".venv-{NEWEST_PYTHON}", python, NEWEST_DJANGO)
            other.install(["test"])
            results += mariadb(other, required=required)
            suites[newest] = [other.python, "-m", "pytest", *for_pytest]
        else:
            why = f"Python {NEWEST_PYTHON} is not on this machine"
            results.append(missing(newest, why, required=False))
    if suites:
        results += run_pytests(suites)
    if "pytest" in chosen:
        results.append(combined(coverage(environment), only_some=bool(for_pytest)))
    return 0 if summarize(results) else 1


def parse(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Which checks to run, and what to pass on to pytest."""
    names = [*static_checks(default_environment()), "pytest", f"pytest-{NEWEST_PYTHON}"]
    parser = argparse.ArgumentParser(
        prog="project.py test", usage="%(prog)s [--only CHECK]... [-- PYTEST_ARGUMENTS]"
    )
    parser.add_argument("--only", action="append", choices=names, metavar="CHECK")
    parser.add_argument("pytest", nargs="*")
    parsed = parser.parse_args(arguments)
    return parsed.only or names, parsed.pytest


def default_environment() -> Environment:
    return Environment(".venv", sys.executable, OLDEST_DJANGO)


def docs_environment() -> Environment:
    """Return one with nothing that the documentation's own dependency group lacks."""
    return Environment(".venv-docs", sys.executable, OLDEST_DJANGO)


def static_checks(environment: Environment) -> dict[str, Sequence[str | Path]]:
    python = environment.python
    return {
        "ruff": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "imports": [python.with_name("lint-imports")],
        "docs": sphinx(),
    }


def sphinx() -> Sequence[str | Path]:
    options = ["-q", "-W", "--keep-going", "-b", "html"]
    return [docs_environment().python, "-m", "sphinx", *options, "docs", "docs/_build"]


def mariadb(environment: Environment, *, required: bool) -> Iterable[Result]:
    """Install MariaDB's driver where it can be; the tests start the server themselves."""
    why = mariadb_is_missing() or environment.try_install("mariadb")
    name = f"MariaDB ({environment.folder.name})"
    return [missing(name, why, required=required)] if why else []


def coverage(environment: Environment) -> list[str]:
    return [str(environment.python), "-m", "coverage"]


def combined(command: Sequence[str], *, only_some: bool) -> Result:
    """What the suite's processes have covered together."""
    if only_some:
        return Result("coverage", Outcome.NOT_RUN, "only some tests were asked for")
    if problem := run_quietly([*command, "combine", "-q"]):
        return Result("coverage", Outcome.FAILED, last_line(problem), failed=1)
    return run_check("coverage", [*command, "report"])
