"""The tutorial does what it says, done as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.pages import BLOCK, TUTORIAL

COMMAND = re.compile(r"^\$ (python manage\.py|django-admin) (.+)$", re.MULTILINE)
SHOWN = re.compile(r"^\$ curl localhost:8000/open/\n(.+)$", re.MULTILINE)

#: What the page does with a server and curl.
ASK = """
import gc, json, os, sys, threading, django
gc.disable()
os.environ["DJANGO_SETTINGS_MODULE"] = "bookshop.settings"
django.setup()
from django.test import Client
client = Client(SERVER_NAME="localhost")
for path in sys.argv[1:]:
    before = set(threading.enumerate())
    response = client.get(path)
    assert response.status_code == 200, response.content
    if path == "/rebuild/":
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
print(response.content.decode())
"""


@dataclass
class Project:
    """The reader's project, as far as the page has got."""

    folder: Path

    def run(self, *arguments: str) -> str:
        without_ours = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=without_ours,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, command: tuple[str, str]) -> None:
        """Do what the page has the reader type."""
        program, arguments = command
        django = ["manage.py"] if program.startswith("python") else ["-m", "django"]
        self.run(*django, *arguments.split())

    def do(self, language: str, caption: str, text: str) -> None:
        """Do to a file what one block of the page says."""
        path = self.folder / caption.rpartition(" ")[2]
        if language == "diff":
            lines = text.splitlines(keepends=True)
            old = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
            new = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
            assert path.read_text().count(old) == 1
            path.write_text(path.read_text().replace(old, new))
        elif caption.startswith("at the end of "):
            path.write_text(f"{path.read_text()}\n{text}")
        else:
            path.write_text(text)

    def ask(self, *paths: str) -> dict[str, int]:
        """Ask for these paths in a new process, collector off, and return what the last one says."""
        answer: dict[str, int] = json.loads(self.run("-c", ASK, *paths))
        return answer


def test_tutorial(tmp_path: Path) -> None:
    """The standard pool leaves connections, the changed line none, nor does a thread in a scope."""
    project = Project(tmp_path)
    startproject, startapp, makemigrations, migrate, _ = COMMAND.findall(TUTORIAL.read_text())
    _, changed, in_scope = map(json.loads, SHOWN.findall(TUTORIAL.read_text()))
    project.type(startproject)
    project.type(startapp)
    blocks = BLOCK.findall(TUTORIAL.read_text())
    (change,) = [place for place, (language, *_) in enumerate(blocks) if language == "diff"]
    for block in blocks[:change]:
        project.do(*block)
    project.type(makemigrations)
    project.type(migrate)
    reports = ["/report/"] * 5
    answer = project.ask(*reports, "/open/")
    assert answer["all_connections()"] >= 5
    assert answer["connections.all()"] == 1

    project.do(*blocks[change])
    assert project.ask(*reports, "/open/") == changed == {"connections.all()": 1, "all_connections()": 0}

    *own_thread, app = blocks[change + 1 :]
    for block in own_thread:
        project.do(*block)
    assert project.ask("/rebuild/", "/open/") == in_scope
    project.do(*app)
    assert project.ask(*reports, "/rebuild/", "/open/")["all_connections()"] == 0
