"""Wrappers that keep state of their own: a tenant, of which the server's session is a copy."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from .observers import PostgresObserver
from .subprocesses import run_python
from .test_fresh_sessions import backend_pid, one_after_the_other

needs_django_tenants = pytest.mark.skipif(
    importlib.util.find_spec("django_tenants") is None, reason="django-tenants is not installed"
)

SCHEMAS = """
    CREATE TABLE public.note AS SELECT 'of the public' AS text;
    CREATE SCHEMA acme; CREATE TABLE acme.note AS SELECT 'of acme' AS text;
    CREATE SCHEMA globex; CREATE TABLE globex.note AS SELECT 'of globex' AS text;
"""
TASKS = """
    import json, threading
    from django.db import close_old_connections, connection
    from django_executors import ThreadPoolExecutor

    def look():
        "What the task may read, what the wrapper says, and whose session it is."
        with connection.cursor() as cursor:
            cursor.execute("SELECT text, pg_backend_pid() FROM note")
            text, pid = cursor.fetchone()
        return text, connection.schema_name, pid

    def visit(schema):
        connection.set_schema(schema)
        return look()

    def choose(schema):
        connection.set_schema(schema)  # and no query

    def one_after_the_other(*tasks):
        ready = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ready.wait, 10)
            futures = [pool.submit(*task) for task in tasks]
            ready.set()
            return [future.result(20) for future in futures]
"""


@pytest.fixture
def tenants(postgres: PostgresObserver) -> Iterator[None]:
    """A database with a schema, and a note in it, for the public and two tenants."""
    postgres.execute("DROP DATABASE IF EXISTS tenants WITH (FORCE)")
    postgres.execute("CREATE DATABASE tenants")
    with psycopg.connect(os.environ["TEST_POSTGRES_URL"], dbname="tenants") as setting_up:
        setting_up.execute(SCHEMAS.encode())
    yield
    assert not postgres.left("tenants")
    postgres.execute("DROP DATABASE tenants")


def run(code: str, monkeypatch: pytest.MonkeyPatch, *, conn_max_age: int) -> Any:
    """Run code in a project on django-tenants, and return what it prints, from JSON."""
    monkeypatch.setenv("TEST_CONN_MAX_AGE", str(conn_max_age))
    child = run_python(TASKS, code, settings="tests.tenants_settings")
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_the_next_task_sees_no_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE = 0 a task that names no tenant is in public, whatever the one before it chose."""
    code = """
    print(json.dumps(one_after_the_other(
        (visit, "acme"), (look,), (visit, "globex"), (choose, "acme"), (look,), (visit, "acme"),
    )))
    """
    acme, nobody, globex, _, after_choosing, again = run(code, monkeypatch, conn_max_age=0)
    assert acme[:2] == again[:2] == ["of acme", "acme"]
    assert globex[:2] == ["of globex", "globex"]
    assert nobody[:2] == after_choosing[:2] == ["of the public", "public"]


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four workers and a busy queue no task reads another tenant's note."""
    code = """
    with ThreadPoolExecutor(4) as pool:
        wanted = ["acme", "globex", "public"] * 20
        futures = [(want, pool.submit(visit, want)) for want in wanted]
        futures += [("public", pool.submit(look)) for _ in range(20)]
        found = [(want, future.result(20)) for want, future in futures]
    texts = {"acme": "of acme", "globex": "of globex", "public": "of the public"}
    print(json.dumps([one for want, one in [*found] if one[:2] != (texts[want], want)]))
    """
    assert run(code, monkeypatch, conn_max_age=0) == []


@needs_django_tenants
@pytest.mark.usefixtures("tenants")
def test_a_kept_session_is_as_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE = 60 the tenant stays until one is set anew, as between two requests.

    That is what CONN_MAX_AGE asks for: Django keeps connection and wrapper on a thread too, and
    django-tenants' middleware begins each request by setting the tenant. A task has to do the same.
    What must not happen: that wrapper and server disagree.
    """
    code = """
    in_a_task = one_after_the_other((visit, "acme"), (look,), (visit, "globex"))
    in_a_request = [visit("acme")]
    for view in look, lambda: visit("globex"):
        close_old_connections()  # what Django does at a request's end and at the next one's begin
        in_a_request.append(view())
    connection.close()
    print(json.dumps([in_a_task, in_a_request]))
    """
    in_tasks, in_requests = run(code, monkeypatch, conn_max_age=60)
    expected = [["of acme", "acme"], ["of acme", "acme"], ["of globex", "globex"]]
    for found in in_tasks, in_requests:
        assert [one[:2] for one in found] == expected
        assert len({pid for *_, pid in found}) == 1


def test_a_subclass_gets_a_new_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper class of a project's own is never used by two tasks, nor is its connection."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.subclassed_backend")

    def leaves() -> tuple[Any, int]:
        wrapper = connections["default"]
        wrapper.ops.tenant = "acme"  # where nobody looks
        return wrapper, backend_pid()

    def leaves_without_a_query() -> Any:
        return connections["default"]

    def looks() -> tuple[Any, int]:
        assert not hasattr(connection.ops, "tenant")
        return connections["default"], backend_pid()

    (first, pid), second, (third, next_pid) = one_after_the_other(leaves, leaves_without_a_query, looks)
    assert len({id(first), id(second), id(third)}) == 3
    assert pid != next_pid


def test_a_subclass_is_kept_as_django_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At CONN_MAX_AGE ≠ 0 a wrapper class of a project's own stays, with its connection."""
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.subclassed_backend")
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 60)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first == second
