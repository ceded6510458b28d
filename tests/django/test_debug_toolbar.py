"""The SQL panel of the real django-debug-toolbar, with the queries of a request's tasks."""

from __future__ import annotations

import json
from typing import Any

from tests.support.observers import PostgresObserver
from tests.support.subprocesses import run_python

RUN = "from tests.projects.toolbar_site import main; main()"


def panels(**variables: str) -> list[dict[str, Any]]:
    ran = run_python(RUN, settings="tests.projects.toolbar_settings", **variables)
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_the_panel(postgres: PostgresObserver) -> None:
    """Each request's panel shows its own query and its tasks', with the tasks' stacks."""
    *pages, of_async = panels()
    assert len(pages) == 3
    for each in pages:
        assert (each["queries"], each["numbers"]) == (5, [5])
        assert sum("count_entries" in stack for stack in each["stacks"]) == 3
    assert of_async["queries"] == 5
    assert not postgres.left()


def test_the_toolbars_own() -> None:
    """Without the line, its panel is blind to tasks, and nothing else is different."""
    assert [each["queries"] for each in panels(WITHOUT_THE_PANEL="1")][:3] == [1, 1, 1]
