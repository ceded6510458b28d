"""The process of one way, as the experiment sees it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .ways import Way
from .workload import Variant

SCRIPT = Path(__file__).resolve().parents[1] / "one_way.py"


class LostChildError(Exception):
    """The process ended before its time."""


class Child:
    """`one_way.py` at work. A context manager that ends it."""

    def __init__(self, way: Way, variant: Variant, *, url: str, collector: bool) -> None:
        command = [sys.executable, str(SCRIPT), way.key]
        command += ["--callers", str(variant.callers), "--rounds", str(variant.rounds)]
        command += ["--jobs", str(variant.jobs)]
        # The URL holds a password: a command line is for everyone to read.
        environment = os.environ | {"DATABASE_URL": url}
        if variant.replica:
            environment["REPLICA_URL"] = url
        if variant.ceiling and way.knows_ceiling:
            environment["CEILING"] = str(variant.ceiling)
        self._process = subprocess.Popen(
            command if collector else [*command, "--no-gc"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is the experiment's to handle
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_for(self, state: str, *, on_pool: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Read until the process says that it is in `state`, and return what it says with it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer: dict[str, Any] = json.loads(line)
            heard = answer.pop("state")
            if heard == state:
                return answer
            if heard == "pool":
                on_pool()
        code = self._process.wait()
        raise LostChildError(f"{SCRIPT.name} ended with exit code {code}; what it said is above")

    def send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
