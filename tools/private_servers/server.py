"""The life of a private server, whatever its kind: start, restart, stop."""

import atexit
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from .processes import Account, Child, ServerFailed, free_port, remove_folder

START_SECONDS = 30.0
POLL_SECONDS = 0.02
PORTS_TO_TRY = 5


class Server:
    """A running server and its address. A context manager that stops it at the end."""

    scheme: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    host: ClassVar[str] = "127.0.0.1"
    user: ClassVar[str] = "app"
    password: ClassVar[str] = "secret"
    database: ClassVar[str] = "app"

    def __init__(self, folder: Path, account: Account | None) -> None:
        self.port = 0
        self._folder = folder
        self._account = account
        self._guard = Child([], folder=folder)
        self._child: Child | None = None
        self._owner = os.getpid()
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        name, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"{self.scheme}://{name}:{password}@{self.host}:{self.port}/{self.database}"

    def stop(self) -> None:
        """Stop the server and remove its folder; a second call does nothing."""
        if os.getpid() != self._owner:
            return  # a forked child that exits has this object too, and no right to the server
        atexit.unregister(self.stop)
        self._stop_child()
        remove_folder(self._folder)
        self._guard.stop()

    def restart(self) -> None:
        """Stop the server and start it again, on the same port with the same data."""
        self._stop_child()
        self._start_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port} in {self._folder}>"

    # What a kind of server adds.

    def _prepare(self) -> None:
        """Make the data folder."""
        raise NotImplementedError

    def _command(self) -> Sequence[str | Path]:
        """The command line that serves `self.port`."""
        raise NotImplementedError

    def _greets(self, client: socket.socket) -> bool:
        """Whether the server at the other end of `client` is ready for use."""
        raise NotImplementedError

    # Helpers.

    def _start(self) -> Self:
        """Make the data folder and start, on a port that nobody else took meanwhile."""
        try:
            self._prepare()
            for attempt in range(PORTS_TO_TRY):
                self.port = free_port()
                try:
                    self._start_child()
                except ServerFailed:
                    if attempt == PORTS_TO_TRY - 1 or not _port_is_taken(self.port):
                        raise
                else:
                    break
        except BaseException:
            self.stop()
            raise
        return self

    def _run(self, command: Sequence[str | Path], *, stdin: Path = Path(os.devnull)) -> None:
        """Run a command of the set-up to its end, as the server's user."""
        Child(command, folder=self._folder, account=self._account, stdin=stdin).wait(START_SECONDS)

    def _start_child(self) -> None:
        child = Child(
            self._command(),
            folder=self._folder,
            account=self._account,
            stop_signal=self.stop_signal,
        )
        self._child = child
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if not child.running:
                raise child.failure("did not start")
            if time.monotonic() > deadline:
                raise child.failure(f"was not ready after {START_SECONDS:.0f} seconds")
            # A server has no event to wait for: ask again soon, until the deadline.
            time.sleep(POLL_SECONDS)  # noqa: TID251
        if not child.running:  # somebody else answered on this port
            raise child.failure("did not start")

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as client:
                return self._greets(client)
        except OSError:
            return False

    def _stop_child(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


def _port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
