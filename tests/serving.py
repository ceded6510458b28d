"""A real uvicorn that serves tests/asgi.py."""

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
    with closing(socket.socket()) as listening, log.open("wb") as output:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)  # clients queue here while uvicorn starts
        options = [f"--fd={listening.fileno()}", "--lifespan=off", "--log-level=warning"]
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "tests.asgi:application", *options],
            cwd=ROOT,
            env=environment("tests.asgi_settings") | variables,
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
