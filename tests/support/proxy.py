"""A TCP proxy that misbehaves on demand, to stand between Django and a server."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

# With no time to linger, closing sends RST, as a firewall or a dying machine does.
_NO_LINGERING = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a loopback port and passes everything on, until it is told otherwise.

    What it was told has happened when the method returns: the client's kernel knows.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._stalled = False  # guarded by _changed
        self._refusing = False  # guarded by _changed
        self._links: list[_Link] = []  # guarded by _changed
        #: For how many seconds what a server says is on its way.
        self.latency = 0.0
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def stall(self) -> None:
        """Pass nothing on any more, in either direction, and let nobody know."""
        with self._changed:
            self._stalled = True

    def forget(self) -> None:
        """Drop what is sent on the connections that there are now; serve new ones. So do firewalls."""
        with self._changed:
            for link in self._links:
                link.forgotten = True

    def cut(self) -> None:
        """Reset every connection, and each new one."""
        with self._changed:
            self._refusing = True
        self.reset()

    def restore(self) -> None:
        """Pass everything on again, what was held back first."""
        with self._changed:
            self._stalled = self._refusing = False
            self._changed.notify_all()

    def reset(self) -> None:
        """Reset every connection that there is now."""
        with self._changed:
            links, self._links = self._links, []
            for link in links:
                link.broken = True
            self._changed.notify_all()
        for link in links:
            link.reset()

    def half_close(self) -> None:
        """End what the server says on every connection, and listen to the client still."""
        with self._changed:
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.client.shutdown(socket.SHUT_WR)

    def wait_for_the_servers_end(self) -> None:
        """Wait until every connection that the server has ended is ended for its client too."""
        with self._changed:
            links = list(self._links)
        for link in links:
            link.downstream.join(10)
            assert not link.downstream.is_alive()

    def wait_until_ends_are_passed_on(self) -> None:
        """Wait until each client has been told of the end, if its server has ended its connection."""
        with self._changed:
            links = list(self._links)
        assert wait_until(lambda: all(link.is_quiet() for link in links), within=20)

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _close_at_once(client)
                continue
            link = _Link(client, server, self)
            with self._changed:
                accepted = not self._refusing
                if accepted:
                    self._links.append(link)
                    link.start()
            if not accepted:
                link.close()

    def note(self, data: bytes) -> None:
        """It passes on what somebody has said."""

    def hold_back(self) -> None:
        """Keep what a server has said for as long as the network takes."""
        threading.Event().wait(self.latency)

    def may_pass(self, link: _Link) -> bool:
        """Wait until the network flows; return False if it has broken."""
        with self._changed:
            self._changed.wait_for(lambda: link.broken or not (link.forgotten or self._stalled))
            return not link.broken


class Recorder(Proxy):
    """Keeps what was said."""

    def __init__(self, host: str, port: int) -> None:
        self.said = bytearray()
        super().__init__(host, port)

    def note(self, data: bytes) -> None:
        self.said += data


class _Link:
    """One connection: a client, a server, and a thread for what each of them says."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: Proxy) -> None:
        self.client = client
        self.server = server
        self.broken = False  # guarded by the proxy's _changed
        self.forgotten = False  # guarded by the proxy's _changed
        self._proxy = proxy
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream = self._thread(client, server)
        self.downstream = self._thread(server, client)

    def is_quiet(self) -> bool:
        """Return whether nothing of what the server has said, its end included, is to be passed on."""
        if not self.downstream.is_alive():
            return True
        with contextlib.suppress(OSError, ValueError):  # it has been closed meanwhile
            return not select.select([self.server], [], [], 0)[0]
        return True

    def start(self) -> None:
        self._upstream.start()
        self.downstream.start()

    def reset(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RD)  # sends nothing, but wakes its thread up
        self._upstream.join(10)
        self.downstream.join(10)
        self.close()

    def close(self) -> None:
        _close_at_once(self.client)
        _close_at_once(self.server)

    def _thread(self, one: socket.socket, other: socket.socket) -> threading.Thread:
        return threading.Thread(target=self._pass_on, args=(one, other), name="proxy", daemon=True)

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := one.recv(65536)) and self._proxy.may_pass(self):
                self._proxy.note(data)
                if one is self.server:
                    self._proxy.hold_back()
                other.sendall(data)
        if self._proxy.may_pass(self):
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)


def _close_at_once(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    side.close()
