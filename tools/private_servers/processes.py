"""What every private server needs: a user, a temporary folder, a port and a child that dies with us.

Children are started through `keeper.py`, one mechanism for every platform. Linux's parent-death
signal would not do: it fires when the *thread* that started the child ends, and leaves the folder.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEEPER = Path(__file__).with_name("keeper.py")
LONGEST_BASE = 60  # a Unix socket's path ends at 103 bytes on macOS


class MissingServer(Exception):  # noqa: N818 - it says what is missing, not what went wrong
    """The server's programs are not here; the message is one line with the command that mends it."""


class ServerFailed(Exception):  # noqa: N818
    """A server did not start or stop; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Account:
    """The user that a server runs as when root starts it, since servers refuse to run as root."""

    uid: int
    gid: int


# Debian keeps servers where only root's PATH looks, and Homebrew where no PATH does.
FOLDERS = [
    *("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin"),
    *("/opt/homebrew/opt/mariadb/bin", "/usr/local/opt/mariadb/bin"),
]


def find_program(name: str) -> Path | None:
    """A server's program, on the PATH or where servers are kept."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *FOLDERS]))
    return Path(found) if found else None


def account_for(*names: str) -> Account | None:
    """The first of these users that exists, or else `nobody`; None unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(user.pw_uid, user.pw_gid)
    return Account(65534, 65534)


def open_to_everyone(path: Path) -> bool:
    """Whether any user may read `path` and pass through the folders above it."""
    path = path.resolve()
    return path.stat().st_mode & 0o005 == 0o005 and all(
        folder.stat().st_mode & 0o001 for folder in path.parents
    )


def make_folder(account: Account | None) -> Path:
    """Make a temporary folder that belongs to `account`, with a path short enough for a socket."""
    base = Path(tempfile.gettempdir()).resolve()
    if len(str(base)) > LONGEST_BASE or (account and not open_to_everyone(base)):
        base = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="private-server-", dir=base))
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def free_port() -> int:
    """A loopback port that was free a moment ago; whoever uses it retries on a clash."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """One command under a keeper's eye. It ends with this process, however this process ends.

    Without a command the keeper guards `folder` alone, as it does between one command and the next.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        account: Account | None = None,
        stop_signal: signal.Signals = signal.SIGKILL,
        stdin: Path = Path(os.devnull),
    ) -> None:
        self._program = Path(command[0]).name if command else "no-program"
        self._log = folder / f"{self._program}.log"
        job = {
            "command": [str(part) for part in command],
            "folder": str(folder),
            "log": str(self._log),
            "input": str(stdin),
            "uid": account and account.uid,
            "gid": account and account.gid,
            "stop_signal": int(stop_signal),
            "parent": os.getpid(),
            # Nothing of the caller's: PG* variables and broken locales change what servers do.
            "environment": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        }
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
        )

    @property
    def running(self) -> bool:
        return self._keeper.poll() is None

    def wait(self, timeout: float) -> None:
        """Wait for a command that ends by itself.

        Raises:
            ServerFailed: it failed, or took longer than `timeout` seconds.
        """
        try:
            code: int | None = self._keeper.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.stop()
        if code != 0:
            raise self.failure("took too long" if code is None else f"exited with {code}")

    def stop(self) -> None:
        """Stop the command and wait until it is gone; nothing happens if it is."""
        assert self._keeper.stdin is not None
        if not self._keeper.stdin.closed:
            try:
                self._keeper.stdin.write(b"s")
                self._keeper.stdin.close()
            except BrokenPipeError:
                pass  # it ended by itself
        self._keeper.wait()

    def failure(self, what: str) -> ServerFailed:
        """An exception that says `what` happened, with the end of the log."""
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        return ServerFailed("\n".join([f"{self._program} {what}", *log.splitlines()[-15:]]))


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
