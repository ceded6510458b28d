"""A private PgBouncer, from the machine's binary, in front of a private PostgreSQL."""

import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from .postgres import Postgres
from .processes import Account, MissingServer, account_for, find_program, make_folder
from .server import Server

MOST_CLIENTS = 500
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # length and code: answered by one byte, S or N


class PgBouncer(Server):
    """A running PgBouncer in transaction mode. User and password are those of its PostgreSQL.

    It ends with the process that started it, and serves as long as its PostgreSQL does.
    """

    scheme = "postgresql"
    stop_signal = signal.SIGTERM  # at once; SIGINT would wait for the clients' transactions

    def __init__(
        self,
        folder: Path,
        account: Account | None,
        binary: Path,
        postgres: Postgres,
        pool_size: int,
    ) -> None:
        super().__init__(folder, account)
        self._binary = binary
        self._postgres = postgres
        self._pool_size = pool_size

    def _prepare(self) -> None:
        self._write("users.txt", f'"{self.user}" "{self.password}"\n')

    def _command(self) -> Sequence[str | Path]:
        behind = f"host={self._postgres.host} port={self._postgres.port}"
        settings = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",  # none
            "auth_type": "scram-sha-256",
            "auth_file": self._folder / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": self._pool_size,
            "max_client_conn": MOST_CLIENTS,
            "log_connections": 0,
            "log_disconnections": 0,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        ini = "\n".join(["[databases]", f"* = {behind}", "[pgbouncer]", *lines, ""])
        return [self._binary, self._write("pgbouncer.ini", ini)]

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        path.chmod(0o644)  # the folder itself is closed to others
        return path

    def _greets(self, client: socket.socket) -> bool:
        client.sendall(SSL_REQUEST)
        return client.recv(1) in (b"S", b"N")


def start_pgbouncer(postgres: Postgres, *, pool_size: int = 20) -> PgBouncer:
    """Start a private PgBouncer in transaction mode, for every database of `postgres`.

    Args:
        postgres: the server behind it; it has to run as long as this one is used.
        pool_size: the most connections to it, for each database.

    Raises:
        MissingServer: this machine has no PgBouncer.
        ServerFailed: it did not start; the message has the end of its log.
    """
    binary = find_pgbouncer()
    account = account_for("postgres")
    return PgBouncer(make_folder(account), account, binary, postgres, pool_size)._start()


def find_pgbouncer() -> Path:
    """PgBouncer's program.

    Raises:
        MissingServer: it is not here.
    """
    if found := find_program("pgbouncer"):
        return found
    mend = "brew install pgbouncer" if sys.platform == "darwin" else "apt-get install pgbouncer"
    raise MissingServer(f"PgBouncer is missing: run `{mend}`")
