"""Whatever tasks did to their sessions, and however they ended: the next one's is like a new one."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from hypothesis import given, settings
from hypothesis import strategies as st

from django_executors import ThreadPoolExecutor
from django_executors.lifecycle import sessions

from .session_state import session_state
from .session_steps import ENDINGS, STEPS, Step, kept_alive, open_iterator, returns
from .test_fresh_sessions import one_after_the_other
from .testapp.models import Entry

pytestmark = pytest.mark.usefixtures("collector_off")


class Task:
    """Some steps and an ending. A step that the server refuses does not end it."""

    def __init__(self, steps: list[Step], ending: Step) -> None:
        self.steps = steps
        self.ending = ending
        self.pid: int | None = None

    def __repr__(self) -> str:
        return f"{[step.__name__ for step in self.steps]} {self.ending.__name__}"

    def __call__(self) -> None:
        for step in self.steps:
            try:
                step()
            except (DatabaseError, psycopg.Error, transaction.TransactionManagementError):
                break
        if connection.connection is not None:
            self.pid = connection.connection.info.backend_pid
        self.ending()


TASKS = st.lists(
    st.builds(Task, st.lists(st.sampled_from(STEPS), max_size=4), st.sampled_from(ENDINGS)),
    min_size=1,
    max_size=3,
)


def look() -> tuple[dict[str, Any], int]:
    state = session_state()
    return state, connection.connection.info.backend_pid


def check(tasks: list[Task]) -> bool:
    """Run these tasks and then one that looks, on one worker; tell if it got a used backend."""
    try:
        new, _ = look()
    finally:
        connection.close()
        del connections["default"]
    ready = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Entry.objects.count)  # so that the first of them may begin with a kept connection
        pool.submit(ready.wait, 10)
        futures = [pool.submit(task) for task in tasks]
        looks = pool.submit(look)
        ready.set()
        for future in futures:
            future.exception(20)
        seen, pid = looks.result(20)
    kept_alive.clear()
    assert {name: value for name, value in seen.items() if value != new[name]} == {}
    return pid in [task.pid for task in tasks]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_each_step(step: Step) -> None:
    """Each of the steps by itself leaves nothing to the next task."""
    check([Task([step], returns)])


def test_any_steps_and_endings() -> None:
    """A session after any steps and endings equals a new one's, on the same backend in many cases."""
    reused: list[bool] = []

    @settings(max_examples=80, derandomize=True, deadline=None, database=None)
    @given(TASKS)
    def run(tasks: list[Task]) -> None:
        found = check(tasks)
        if not any(open_iterator in task.steps for task in tasks):  # which is dirty
            reused.append(found)

    run()
    assert not sessions._given_up
    assert sum(reused) > len(reused) / 4, reused


def test_start_up_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the start-up packet says, a role among it, is in force again after any step."""
    options = {"options": "-c role=pg_read_all_data -c work_mem=234kB -c app.tenant=nobody"}
    everything = connection.settings_dict["OPTIONS"] | options
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", everything)
    sql = "SELECT current_user, current_setting('work_mem'), current_setting('app.tenant')"

    def leaves() -> tuple[Any, int]:
        with connection.cursor() as cursor:
            found = cursor.execute(sql).fetchall()
            cursor.execute("SET ROLE NONE; SET work_mem = '123kB'; SET app.tenant = 'acme'")
            cursor.execute("SET SESSION AUTHORIZATION pg_monitor")
        return found, connection.connection.info.backend_pid

    (first, pid), (second, next_pid) = one_after_the_other(leaves, leaves)
    assert first == second == [("pg_read_all_data", "234kB", "nobody")]
    assert next_pid == pid
