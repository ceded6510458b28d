"""Keep one command and its folder, and end them with the process that asked for them.

This file runs as a process of its own, between the parent and the server: the one place that
still runs when the parent was killed outright. It ends the server when the parent says so (a byte
on standard input) or is gone (end of file, or another parent process: a forked child may hold the
pipe open). In the second case nobody else is left to remove the temporary folder, so it does.

Without a command it guards the folder alone. It exits with the command's own exit code. It imports
the standard library only, since it is started as a plain file.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05
STOP_SECONDS = 10.0
ORPHAN_STOP_SECONDS = 1.0


def main() -> int:
    job = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally` below
    child = None
    order = _order(job["parent"], 0)
    try:
        if job["command"] and order is None:
            child = _start(job)
        while order is None and (child is None or child.poll() is None):
            order = _order(job["parent"], POLL_SECONDS)
    finally:
        if order is None:  # the command ended by itself, or we were told to end
            order = _order(job["parent"], 0)
        orphaned = order == b""
        if child is not None:
            _stop(child, job["stop_signal"], ORPHAN_STOP_SECONDS if orphaned else STOP_SECONDS)
        if orphaned:
            shutil.rmtree(job["folder"], ignore_errors=True)
    code = child.returncode if child else 0
    return code if code >= 0 else 128 - code  # as a shell says "killed by a signal"


def _start(job: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """Start the command as its own user, out of reach of the terminal's Ctrl-C."""
    owner: dict[str, Any] = {}
    if job["uid"] is not None:
        owner = {"user": job["uid"], "group": job["gid"], "extra_groups": []}
    with Path(job["input"]).open("rb") as stdin, Path(job["log"]).open("ab") as log:
        return subprocess.Popen(
            job["command"],
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd=job["folder"],  # root's own folder is closed to the server's user
            env=job["environment"],
            start_new_session=True,
            **owner,
        )


def _order(parent: int, wait: float) -> bytes | None:
    """Wait a moment: None for "go on", a byte for "stop", no byte for "the parent is gone"."""
    if os.getppid() != parent:
        return b""
    if select.select([0], [], [], wait)[0]:
        return os.read(0, 1)
    return None


def _stop(child: "subprocess.Popen[bytes]", stop_signal: int, patience: float) -> None:
    """By the group, since initdb is two processes and MariaDB's installer a shell script."""
    if child.poll() is not None:
        return
    os.killpg(child.pid, stop_signal)
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
