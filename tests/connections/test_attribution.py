"""EXECUTORS_APPLICATION_NAME: how workers' connections are called on the server."""

from __future__ import annotations

import os
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from django.test import override_settings

from django_executors import ThreadPoolExecutor
from tests.support.forks import fork

NAMED = override_settings(EXECUTORS_APPLICATION_NAME="{project}:{executor}:{pid}")


def application_name(alias: str = "default") -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW application_name")
        return str(cursor.fetchone()[0])


@NAMED
def test_workers() -> None:
    """Project, executor and process, also after a reset; nobody else's connection is renamed."""
    with ThreadPoolExecutor(1, "reports") as pool:
        futures = [pool.submit(application_name) for _ in range(3)]
        assert {each.result(20) for each in futures} == {f"tests:reports:{os.getpid()}"}
        assert pool.stats().connections_reset == 2
    assert application_name() == ""
    connection.close()


@NAMED
def test_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OPTIONS or the environment has said stays; Django's own pool is nobody's."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(application_name, "pooled").result(20) == ""
        options: dict[str, Any] = connections["other"].settings_dict["OPTIONS"]
        options["application_name"] = "of the settings"
        try:
            assert pool.submit(application_name, "other").result(20) == "of the settings"
        finally:
            del options["application_name"]
        monkeypatch.setenv("PGAPPNAME", "of the environment")
        assert pool.submit(application_name).result(20) == "of the environment"


@override_settings(EXECUTORS_APPLICATION_NAME="{executor}")
@pytest.mark.parametrize(("name", "shown"), [("é" * 40, "?" * 62), ("x" * 70, "x" * 63)])
def test_long_names(name: str, shown: str) -> None:
    """They are cut between two characters; PostgreSQL shows ASCII alone."""
    with ThreadPoolExecutor(1, name) as pool:
        found = pool.submit(application_name).result(20)
    assert found in {shown, "é" * 31} or set(found) <= set("\\xc3a9")


@override_settings(EXECUTORS_APPLICATION_NAME="a\0b")
def test_a_nul() -> None:
    """It ends a string of libpq's, and so does not reach it."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(application_name).result(20) == "ab"


@NAMED
def test_in_a_forked_child() -> None:
    """Its connections bear its own number."""
    with ThreadPoolExecutor(1, "reports") as pool:
        pool.submit(application_name).result(20)

        def child() -> None:
            assert pool.submit(application_name).result(20) == f"tests:reports:{os.getpid()}"

        assert fork(child) == (0, "")


@pytest.mark.parametrize("value", [1, "{pod}", "{", "{pid.x}", "{pid:{executor}}"])
def test_wrong(value: Any) -> None:
    with override_settings(EXECUTORS_APPLICATION_NAME=value), ThreadPoolExecutor(1) as pool:
        future = pool.submit(application_name)
        with pytest.raises(ImproperlyConfigured, match="EXECUTORS_APPLICATION_NAME must be a string"):
            future.result(20)
