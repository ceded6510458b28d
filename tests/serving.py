"""Real servers: a uvicorn that serves tests/asgi.py, a gunicorn that serves tests/wsgi.py."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .subprocesses import ROOT, environment


@contextmanager
def uvicorn(log: Path, **variables: str) -> Iterator[int]:
    """Serve tests/asgi.py until the end of the block, and give its port."""
    options = ["--fd={fd}", "--lifespan=off", "--log-level=warning"]
    command = ["uvicorn", "tests.asgi:application", *options]
    with _serve(log, command, environment("tests.asgi_settings") | variables) as port:
        yield port


@contextmanager
def gunicorn(log: Path, *options: str) -> Iterator[int]:
    """Serve tests/wsgi.py until the end of the block, and give its port."""
    command = ["gunicorn", "tests.wsgi:application", "--bind=fd://{fd}", *options]
    with _serve(log, command, environment("tests.wsgi_settings")) as port:
        yield port


@contextmanager
def _serve(log: Path, command: list[str], variables: dict[str, str]) -> Iterator[int]:
    with closing(socket.socket()) as listening, log.open("wb") as output:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)  # clients queue here while the server starts
        server = subprocess.Popen(
            [sys.executable, "-m", *(each.format(fd=listening.fileno()) for each in command)],
            cwd=ROOT,
            env=variables,
            pass_fds=[listening.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield listening.getsockname()[1]
        finally:
            server.terminate()
            try:
                server.wait(20)
            finally:
                server.kill()
