"""`docs/cluster.md`: the demo's report on each executor, by a setting alone, and the page's settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import override_settings

from django_executors import executors
from django_executors.dask import DaskExecutor
from tests.support.observers import PostgresObserver
from tests.support.pages import TUTORIAL, defined_by, plain_blocks
from tests.support.subprocesses import environment, python

PAGE = TUTORIAL.with_name("cluster.md")
SETTINGS = [block for block in plain_blocks(PAGE) if block.startswith("EXECUTORS")]
BACKENDS = re.findall(r"^\| `(django_executors\.[\w.]+)` \|", PAGE.read_text(), re.MULTILINE)
DATABASE = "to_a_cluster"


@pytest.fixture
def url(postgres: PostgresObserver) -> Iterator[str]:
    """A database of the demo's own."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    yield urlsplit(os.environ["TEST_POSTGRES_URL"])._replace(path=f"/{DATABASE}").geturl()
    assert not postgres.left(DATABASE)
    postgres.execute(f"DROP DATABASE {DATABASE}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_report(backend: str, url: str) -> None:
    """It is right on each, and when it is written no connection is left but the caller's."""
    variables = environment("tests.projects.to_a_cluster.settings") | {
        "DATABASE_URL": url,
        "BACKEND": backend,
    }

    migrated = python("-m", "django", "migrate", "--verbosity=0", variables=variables)
    assert migrated.returncode == 0, migrated.stderr
    done = python("-m", "tests.projects.to_a_cluster.run", variables=variables)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    elsewhere = backend.endswith(("ProcessPoolExecutor", "DaskExecutor"))
    assert found == {"right": True, "rows": 3, "clients": 1, "elsewhere": elsewhere}


def test_the_backends() -> None:
    assert len(BACKENDS) == 4


@pytest.mark.parametrize("block", SETTINGS)
def test_the_settings(block: str) -> None:
    """They name executors that can be made."""
    values: dict[str, Any] = defined_by(block)
    with override_settings(EXECUTORS=values["EXECUTORS"]):
        executor = executors["default"]
        assert isinstance(executor, DaskExecutor) == ("Dask" in block)
