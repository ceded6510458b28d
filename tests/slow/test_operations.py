"""`manage.py connections` beside a real gunicorn, and ended by a real Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from django.core.management import call_command

from django_executors.management.commands.connections import Command
from tests.support.observers import PostgresObserver
from tests.support.serving import ask, gunicorn
from tests.support.subprocesses import ROOT, WITH_APP, environment
from tests.support.waiting import wait_until


def test_two_workers(postgres: PostgresObserver, tmp_path: Path) -> None:
    """It shows what both of gunicorn's processes hold, by name, and none of their queries' values."""
    log = tmp_path / "log"
    with gunicorn(log, "--workers=2", site="tests.projects.wsgi_keeping", TEST_KEEPS="yes") as port:
        answered: set[str] = set()

        def both() -> set[str]:
            answered.add(ask(port)[1].split()[0])
            return answered

        assert len(wait_until(both, lambda pids: len(pids) == 2)) == 2
        output = io.StringIO()
        call_command(Command(), "--database=default", stdout=output)
        call_command(Command(), "--database=default", "--json", stdout=(found := io.StringIO()))
    said = output.getvalue()
    rows = {line.split()[0]: line for line in said.splitlines() if line.startswith("web-")}
    assert rows.keys() == {f"web-{pid}" for pid in answered}
    assert all(" idle " in row and "SELECT COUNT(*) AS " in row for row in rows.values())
    assert "secret" not in said + found.getvalue()
    (server,) = json.loads(found.getvalue())["servers"]
    queries = [each["query"] for each in server["clients"] if each["application"] in rows]
    assert len(queries) == 2
    assert all(query.endswith('WHERE "testapp_entry"."name" = ?') for query in queries)
    assert not postgres.left()
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def watching(stdout: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command with --watch until it is interrupted, as by Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "connections", "--database=default", "--watch=0.1"],
        cwd=ROOT,
        env=environment(WITH_APP) | {"COLUMNS": "200", "LINES": "50"},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
def test_ctrl_c(terminal: bool, postgres: PostgresObserver, tmp_path: Path) -> None:
    """It ends with status 0 and without a word, and its connection is gone; a terminal is redrawn."""
    with contextlib.ExitStack() as stack:
        if terminal:
            ours, stdout = pty.openpty()
            stack.callback(os.close, stdout)
            stack.callback(os.close, ours)
            said = b""

            def read() -> bytes:
                nonlocal said
                said += os.read(ours, 100_000)
                return said
        else:
            stdout = stack.enter_context((tmp_path / "out").open("wb")).fileno()

            def read() -> bytes:
                return (tmp_path / "out").read_bytes()

        with watching(stdout):
            found = wait_until(read, lambda said: said.count(b" usable (") >= 3, within=30)
            assert len(postgres.backends()) == 1
        assert not postgres.left()
    assert found.count(b" usable (") >= 3
    assert (b"\x1b[2J\x1b[H" in found) == terminal
