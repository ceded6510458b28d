"""The page on deploying does what it says, under the real servers: what is lost is in the log."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.projects.deploying import HELD, PAGE, QUEUED, QUICK, Project, kill, rows
from tests.support.observers import PostgresObserver
from tests.support.pages import BLOCK
from tests.support.waiting import wait_until


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("worker", "killed"), [("sync", False), ("gthread", True)], ids=["in time", "killed"]
)
def test_gunicorn(worker: str, killed: bool, project: Project, postgres: PostgresObserver) -> None:
    """A restart by SIGTERM with work queued loses only what the log names."""
    with project.gunicorn(f"--worker-class={worker}") as (server, port):
        pid = project.submit(port)
        server.terminate()
        running, not_run = project.named()
        if killed:
            kill(pid)
        else:
            project.go_on.touch()
        assert server.wait(20) == 0
    assert (running, not_run) == (HELD, QUEUED)
    assert rows() == (QUICK if killed else QUICK + HELD)
    assert not postgres.left()


def test_gunicorn_with_a_named_executor(project: Project, postgres: PostgresObserver) -> None:
    """The hook of the page on named executors does the same for a pool that the settings name."""
    project.name_its_pool()
    with project.gunicorn() as (server, port):
        project.submit(port)
        server.terminate()
        assert project.named() == (HELD, QUEUED)
        project.go_on.touch()
        assert server.wait(20) == 0
    assert "executor=default timeout=" in project.log.read_text()
    assert rows() == QUICK + HELD
    assert not postgres.left()


def test_gunicorn_restarts_its_workers(project: Project, postgres: PostgresObserver) -> None:
    """So does SIGHUP, by which the workers alone are restarted; the new ones have nothing to say."""
    with project.gunicorn() as (server, port):
        project.submit(port)
        server.send_signal(signal.SIGHUP)
        assert project.named() == (HELD, QUEUED)
        project.go_on.touch()
        assert wait_until(rows, lambda found: found == QUICK + HELD, within=20) == QUICK + HELD
        project.submit(port)
        everything = QUICK + HELD + QUEUED
        both = QUICK + HELD + everything
        assert wait_until(rows, lambda found: found == both, within=20) == both
        server.terminate()
        assert server.wait(20) == 0
    assert project.named() == (HELD, QUEUED)
    assert not postgres.left()


def test_gunicorn_with_time_enough(project: Project) -> None:
    """What can end before the deadline runs, and nothing is logged."""
    project.go_on.touch()
    with project.gunicorn() as (server, port):
        project.submit(port)
        server.terminate()
        assert server.wait(20) == 0
    assert rows() == QUICK + HELD + QUEUED
    assert project.says_nothing()


def test_gunicorn_without_the_hook(project: Project) -> None:
    """What the hook is for: without it, gunicorn kills its worker in the end, without a word."""
    (project.folder / "gunicorn.conf.py").unlink()
    with project.gunicorn("--graceful-timeout=1") as (server, port):
        project.submit(port)
        server.terminate()
        assert server.wait(20) == 0
    assert rows() == QUICK
    assert project.says_nothing()


def test_gunicorns_limit_for_a_worker(project: Project) -> None:
    """Where a worker restarts by itself, a deadline beyond gunicorn's `timeout` comes too late."""
    conf = project.folder / "gunicorn.conf.py"
    text = conf.read_text().replace("timeout=0.5)", "timeout=60)")
    conf.write_text(text.replace("\ntimeout = 30\n", "\ntimeout = 5\n"))
    with project.gunicorn("--max-requests=1") as (_, port):
        project.submit(port)
        wait_until(lambda: "was sent SIGKILL" in project.log.read_text(), within=30)
    assert "WORKER TIMEOUT" in project.log.read_text()
    assert rows() == QUICK
    assert project.says_nothing()


def test_uvicorn(project: Project, postgres: PostgresObserver) -> None:
    """With the lifespan's end, a SIGTERM to uvicorn loses only what the log names."""
    with project.uvicorn("shop.asgi:application") as (server, port):
        project.submit(port)
        server.terminate()
        assert server.wait(20) == -signal.SIGTERM
    assert project.named() == (HELD, QUEUED)
    assert rows() == QUICK
    assert not postgres.left()


def test_uvicorn_without_the_lifespan(project: Project) -> None:
    """What it is for: uvicorn ends its process at once, and what is queued is lost without a word."""
    with project.uvicorn("shop.asgi:django_application", "--lifespan=off") as (server, port):
        project.submit(port)
        server.terminate()
        assert server.wait(20) == -signal.SIGTERM
    assert rows() == QUICK
    assert project.says_nothing()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command(number: signal.Signals, project: Project, postgres: PostgresObserver) -> None:
    """A management command that is told to end names what it has not run, and ends what runs."""
    with project.command() as command:
        assert project.all_is_submitted()
        command.send_signal(number)
        running, not_run = project.named()
        project.go_on.touch()
        ended = command.wait(20)
    assert ended == (128 + number if number == signal.SIGTERM else -number)
    assert (running.total(), not_run.total()) == (HELD.total(), QUEUED.total())
    assert rows() == QUICK + HELD
    assert not postgres.left()


def test_deadlines_of_the_page() -> None:
    """Every example waits for 20 seconds, which the tests shorten, and less than gunicorn does."""
    texts = {caption: text for _, caption, text in BLOCK.findall(PAGE.read_text())}
    with_deadline = {caption for caption, text in texts.items() if "timeout=20)" in text}
    assert with_deadline == texts.keys() - {"shop/jobs.py"}
