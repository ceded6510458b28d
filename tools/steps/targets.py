"""The targets themselves: demo, site, test, mutations, bench, docs, clean."""

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
#: What other Pythons than the default one are tested with, those that are on the machine.
OTHERS = {
    "3.12": ("django~=6.0.0", "asgiref>=3.13"),
    "3.13": ("django~=6.1.0", "asgiref>=3.13"),
    "3.14": ("django~=6.1.0", "asgiref>=3.13"),
}
#: The tiers of tests/conftest.py.
ALL_TIERS = "fast or servers or slow"

RUBBISH = [
    *(".venv*", "build", "dist", "docs/_build", "src/*.egg-info", ".coverage", ".coverage.*", "htmlcov"),
    *(".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    "demo/experiment.svg",
    *(f"{folder}/**/__pycache__" for folder in ("src", "tests")),
    *(f"{folder}/**/__pycache__" for folder in ("demo", "benchmarks", "tools", "docs")),
]


def main(arguments: Sequence[str]) -> int:
    """Run the target that the command line names."""
    targets: dict[str, Callable[[Sequence[str]], int]] = {
        "demo": demo,
        "site": site,
        "test": test,
        "mutations": mutations,
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
    environment = environment_of("demo")
    environment.install(["demo"], server_given=bool(os.environ.get("DATABASE_URL")))
    experiment = ROOT / "demo" / "experiment.py"
    os.execv(environment.python, [str(environment.python), str(experiment), *arguments])


def site(arguments: Sequence[str]) -> int:
    """Serve the demo project's page until Ctrl-C; what follows is the address."""
    environment = environment_of("demo")
    environment.install(["demo"], server_given=bool(os.environ.get("DATABASE_URL")))
    serve = ROOT / "demo" / "serve.py"
    os.execv(environment.python, [str(environment.python), str(serve), *arguments])


def bench(arguments: Sequence[str]) -> int:
    """Measure the speed beside the alternatives; what follows is passed on."""
    environment = environment_of("bench")
    environment.install(["bench"])
    if why := install_mariadb(environment):
        say(f"without MariaDB: {why}")
    run = ROOT / "benchmarks" / "run.py"
    os.execv(environment.python, [str(environment.python), str(run), *arguments])


def docs(arguments: Sequence[str]) -> int:
    """Build the documentation afresh."""
    environment = environment_of("docs")
    environment.install(["docs"])
    shutil.rmtree(ROOT / "docs" / "_build", ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-b", "html"]
    if not run_shown("docs", [environment.python, "-m", "sphinx", *options, "docs", "docs/_build"]):
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


def mutations(arguments: Sequence[str]) -> int:
    """Break the code in many places, and see that the tests notice; what follows is passed on."""
    environment = environment_of()
    environment.install(["test"])
    if why := install_mariadb(environment):
        say(f"without MariaDB: {why}")
    script = ROOT / "tools" / "mutations.py"
    os.execv(environment.python, [str(environment.python), str(script), *arguments])


def test(arguments: Sequence[str]) -> int:
    """Run every check, also after one that failed, and say at the end how each ended."""
    asked = parse(arguments)
    required = bool(os.environ.get("REQUIRE_ALL_SERVERS"))
    results: list[Result] = []
    environment = environment_of()
    environment.install(["test", "lint"])
    for name, command in checks(environment).items():
        if name in asked.only:
            results.append(run_check(name, command))
    suites: dict[str, Sequence[str | Path]] = {}
    if "pytest" in asked.only:
        if not asked.fast:
            results += mariadb(environment, required=required)
        run_quietly([*coverage(environment), "erase"])
        tests = ["pytest", *tier("fast" if asked.fast else ALL_TIERS, asked.pytest)]
        suites["pytest"] = (
            [environment.python, "-m", *tests]
            if asked.fast
            else [*coverage(environment), "run", "-m", *tests]
        )
    for version in others():
        if (name := f"pytest-{version}") not in asked.only:
            continue
        if python := pythons.find_python((version,)):
            other = Environment(f".venv-{version}", python, OTHERS[version])
            other.install(["test"])
            results += mariadb(other, required=required)
            tests = tier("fast or servers", asked.pytest)
            suites[name] = [other.python, "-m", "pytest", *tests]
        else:
            results.append(missing(name, f"Python {version} is not on this machine", required=False))
    if suites:
        results += run_pytests(suites)
    if "pytest" in asked.only and not asked.fast:
        results.append(combined(coverage(environment), only_some=bool(asked.pytest)))
    return 0 if summarize(results) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Which checks to run, and what to pass on to pytest."""
    names = [*checks(environment_of()), "pytest", *(f"pytest-{version}" for version in others())]
    parser = argparse.ArgumentParser(
        prog="project.py test", usage="%(prog)s [--fast] [--only CHECK]... [-- PYTEST_ARGUMENTS]"
    )
    parser.add_argument("--fast", action="store_true", help="what takes a minute")
    parser.add_argument("--only", action="append", choices=names, metavar="CHECK")
    parser.add_argument("pytest", nargs="*")
    parsed = parser.parse_args(arguments)
    parsed.only = parsed.only or (["ruff", "format", "pytest"] if parsed.fast else names)
    return parsed


def others() -> list[str]:
    """Return the Pythons that are tested besides the default one."""
    return [version for version in OTHERS if version != "{}.{}".format(*sys.version_info)]


def tier(default: str, arguments: Sequence[str]) -> Sequence[str]:
    """Return pytest's arguments: what was asked for, of this tier if nothing else is said."""
    return arguments or ["-m", default]


def environment_of(group: str = "") -> Environment:
    """Return that of the tests, or one that has nothing beside this dependency group."""
    return Environment(f".venv-{group}" if group else ".venv", sys.executable, OLDEST_DJANGO)


def checks(environment: Environment) -> dict[str, Sequence[str | Path]]:
    """Return what is not pytest. The last three each run in an environment of their own."""
    python, ours = environment.python, [sys.executable, ROOT / "tools" / "project.py"]
    return {
        "ruff": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
        "imports": [python.with_name("lint-imports")],
        "docs": [*ours, "docs"],
        "demo": [*ours, "demo"],
        "bench": [*ours, "bench", "--quick"],
    }


def install_mariadb(environment: Environment) -> str | None:
    """Install its driver, or say why that cannot be. Who uses it starts the server too."""
    return mariadb_is_missing() or environment.try_install("mariadb")


def mariadb(environment: Environment, *, required: bool) -> Iterable[Result]:
    """Return a line of the summary where MariaDB cannot be used."""
    why = install_mariadb(environment)
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
