"""Real servers, of this suite's sites and of other projects, and their clients."""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.support.subprocesses import ROOT, environment


class Served(NamedTuple):
    """A server that runs."""

    process: subprocess.Popen[bytes]
    port: int


@contextmanager
def serve(
    log: Path, module: str, *options: str, bind: str, cwd: Path, variables: Mapping[str, str]
) -> Iterator[Served]:
    """Run a server's module until the end of the block, on a socket that listens already.

    Args:
        bind: the option that takes the socket, up to its number.
    """
    with closing(socket.socket()) as listening, log.open("wb") as output:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)  # clients queue here while the server starts
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"{bind}{listening.fileno()}", *options],
            cwd=cwd,
            env=variables,
            pass_fds=[listening.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Served(process, listening.getsockname()[1])
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                with suppress(ProcessLookupError):  # its workers have ended too
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


#: ASGI servers, and the options with which they take a socket and log nothing but trouble.
ASGI_SERVERS = {
    "uvicorn": ("--fd=", "--log-level=warning"),
    "hypercorn": ("--bind=fd://", "--log-level=warning"),
    "daphne": ("--fd=", "--verbosity=0"),
}


@contextmanager
def asgi(server: str, log: Path, site: str, **variables: str) -> Iterator[Served]:
    """Serve one of the sites by one of those servers until the end of the block."""
    bind, quiet = ASGI_SERVERS[server]
    options = [quiet, f"{site}:application"]
    found = environment("tests.projects.asgi_settings") | {"TEST_SITE": site} | variables
    with serve(log, server, *options, bind=bind, cwd=ROOT, variables=found) as served:
        yield served


@contextmanager
def uvicorn(log: Path, site: str = "tests.projects.asgi", **variables: str) -> Iterator[int]:
    """Serve one of the sites until the end of the block, and give its port."""
    with asgi("uvicorn", log, site, **variables) as served:
        yield served.port


@contextmanager
def gunicorn(
    log: Path, *options: str, site: str = "tests.projects.wsgi", **variables: str
) -> Iterator[int]:
    """Serve one of the sites until the end of the block, and give its port."""
    found = environment("tests.projects.wsgi_settings") | {"TEST_SITE": site} | variables
    options = (f"{site}:application", *options)
    with serve(log, "gunicorn", *options, bind="--bind=fd://", cwd=ROOT, variables=found) as served:
        yield served.port


def ask(port: int, path: str = "/") -> tuple[int, str]:
    """Ask once, over a connection of its own, so that any worker process may answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("GET", path)
        response = client.getresponse()
        return response.status, response.read().decode()


def ask_all(port: int, paths: Iterable[str], *, clients: int) -> list[tuple[int, str]]:
    """Ask for all of them, so many at once."""
    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        return list(threads.map(lambda path: ask(port, path), paths))
