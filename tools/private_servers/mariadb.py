"""A private MariaDB, from the machine's binaries."""

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import Account, MissingServer, account_for, find_program, make_folder
from .server import Server

PROTOCOL_VERSION = 10  # the first byte after the header of a server's greeting


class MariaDB(Server):
    """A running MariaDB. `user` may do everything, over TCP with the password."""

    scheme = "mysql"
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, account: Account | None, server: Path, installer: Path) -> None:
        super().__init__(folder, account)
        self._server = server
        self._installer = installer
        self._data = folder / "data"
        self._first_statements = folder / "create.sql"

    def _prepare(self) -> None:
        who = f"'{self.user}'@'{self.host}'"
        self._first_statements.write_text(
            f"CREATE DATABASE IF NOT EXISTS {self.database};\n"
            f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO {who} WITH GRANT OPTION;\n"
        )
        self._first_statements.chmod(0o644)  # the folder itself is closed to others
        self._run([
            self._installer,
            "--no-defaults",
            f"--datadir={self._data}",
            # Or two that are made at the same time take each other's tables away.
            f"--tmpdir={self._folder}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ])  # fmt: skip

    def _command(self) -> Sequence[str | Path]:
        return [
            self._server,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--tmpdir={self._folder}",
            f"--socket={self._folder / 'mariadb.sock'}",
            f"--pid-file={self._folder / 'mariadb.pid'}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            f"--init-file={self._first_statements}",  # run before the port is opened
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--max-connections=500",
            "--innodb-flush-log-at-trx-commit=0",
        ]

    def _greets(self, client: socket.socket) -> bool:
        greeting = client.recv(5)
        return len(greeting) == 5 and greeting[4] == PROTOCOL_VERSION


def start_mariadb() -> MariaDB:
    """Start a private MariaDB.

    Raises:
        MissingServer: this machine has no MariaDB.
        ServerFailed: it did not start; the message has the end of its log.
    """
    server, installer = find_mariadb()
    account = account_for("mysql")
    return MariaDB(make_folder(account), account, server, installer)._start()


def find_mariadb() -> tuple[Path, Path]:
    """The server's program and the one that makes a data folder.

    Raises:
        MissingServer: one of them is not here.
    """
    server = find_program("mariadbd") or find_program("mysqld")
    installer = find_program("mariadb-install-db")
    if not (server and installer):
        darwin = sys.platform == "darwin"
        mend = "brew install mariadb" if darwin else "apt-get install mariadb-server"
        raise MissingServer(f"MariaDB is missing: run `{mend}`")
    return server, installer
