"""A private Redis and a private memcached, from the machine's binaries."""

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from .processes import Account, MissingServer, account_for, find_program, make_folder
from .server import Server


class _CacheServer(Server):
    """A server without a password and without data to keep."""

    stop_signal = signal.SIGTERM
    program: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, folder: Path, account: Account | None, binary: Path) -> None:
        super().__init__(folder, account)
        self._binary = binary

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def _prepare(self) -> None:
        pass


class Redis(_CacheServer):
    """A running Redis, which keeps nothing on disk."""

    scheme = "redis"
    program = "redis-server"
    package = "redis"

    def _command(self) -> Sequence[str | Path]:
        options = {"--bind": self.host, "--port": str(self.port), "--save": "", "--appendonly": "no"}
        return [self._binary, *(part for option in options.items() for part in option)]

    def _greets(self, client: socket.socket) -> bool:
        client.sendall(b"PING\r\n")
        return client.recv(7) == b"+PONG\r\n"


class Memcached(_CacheServer):
    """A running memcached."""

    scheme = "memcached"
    program = "memcached"
    package = "memcached"

    def _command(self) -> Sequence[str | Path]:
        return [self._binary, "-l", self.host, "-p", str(self.port), "-U", "0"]

    def _greets(self, client: socket.socket) -> bool:
        client.sendall(b"version\r\n")
        return client.recv(8) == b"VERSION "


T = TypeVar("T", bound=_CacheServer)


def start_redis() -> Redis:
    """Start a private Redis.

    Raises:
        MissingServer: this machine has none.
        ServerFailed: it did not start; the message has the end of its log.
    """
    return _start(Redis, "redis")


def start_memcached() -> Memcached:
    """Start a private memcached.

    Raises:
        MissingServer: this machine has none.
        ServerFailed: it did not start; the message has the end of its log.
    """
    return _start(Memcached, "memcache")


def _start(kind: type[T], user: str) -> T:
    found = find_program(kind.program)
    if found is None:
        mend = "brew" if sys.platform == "darwin" else "apt-get"
        raise MissingServer(f"{kind.program} is missing: run `{mend} install {kind.package}`")
    account = account_for(user)
    return kind(make_folder(account), account, found)._start()
