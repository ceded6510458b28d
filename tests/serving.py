"""Real servers: of tests/asgi.py, of the sites for gunicorn, and of other projects."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .subprocesses import ROOT, environment


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


@contextmanager
def uvicorn(log: Path, **variables: str) -> Iterator[int]:
    """Serve tests/asgi.py until the end of the block, and give its port."""
    options = ["tests.asgi:application", "--lifespan=off", "--log-level=warning"]
    found = environment("tests.asgi_settings") | variables
    with serve(log, "uvicorn", *options, bind="--fd=", cwd=ROOT, variables=found) as served:
        yield served.port


@contextmanager
def gunicorn(log: Path, *options: str, site: str = "tests.wsgi") -> Iterator[int]:
    """Serve one of the sites until the end of the block, and give its port."""
    variables = environment("tests.wsgi_settings") | {"TEST_SITE": site}
    options = (f"{site}:application", *options)
    with serve(log, "gunicorn", *options, bind="--bind=fd://", cwd=ROOT, variables=variables) as served:
        yield served.port
