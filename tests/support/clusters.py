"""A Dask cluster on the loopback interface, started by Dask's own commands."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.subprocesses import ROOT, environment
from tests.support.waiting import wait_until


class Cluster:
    """A scheduler and its workers. What they say is in the folder."""

    def __init__(self, folder: Path, options: Sequence[str], variables: Mapping[str, str]) -> None:
        self._folder = folder
        self._options = options
        self._variables = variables
        self._started: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start_scheduler(self, port: int = 0) -> subprocess.Popen[bytes]:
        written = self._folder / "scheduler.json"
        written.unlink(missing_ok=True)
        found = self._start(
            "scheduler", f"--port={port}", f"--scheduler-file={written}", "--no-show", "--no-dashboard"
        )
        text = wait_until(lambda: written.exists() and written.read_text(), within=30)
        assert text, self.said()
        self.address = json.loads(text)["address"]
        return found

    def start_workers(
        self,
        number: int = 1,
        threads: int = 2,
        *,
        settings: str | None = None,
        nanny: bool = True,
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        """Start so many worker processes, which their nanny, if they have one, starts anew."""
        return self._start(
            "worker",
            self.address,
            f"--nworkers={number}",
            f"--nthreads={threads}",
            "--no-dashboard",
            f"--local-directory={self._folder}",
            "--nanny" if nanny else "--no-nanny",
            settings=settings,
            **variables,
        )

    def stop(self) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def _start(
        self, *arguments: str, settings: str | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        log = self._folder / f"{len(self._started)}-{arguments[0]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--host=127.0.0.1", *self._options],
                cwd=ROOT,
                env=environment(settings) | {"PYTHONUNBUFFERED": "1", **self._variables, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started.append(process)
        return process


@contextlib.contextmanager
def cluster(folder: Path, *options: str, **variables: str) -> Iterator[Cluster]:
    """Start a scheduler; stop it and its workers at the end."""
    found = Cluster(folder, options, variables)
    try:
        found.start_scheduler()
        yield found
    finally:
        found.stop()
