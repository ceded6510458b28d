"""The context of tasks that run in their callers' threads."""

from __future__ import annotations

import pytest
from django.utils import translation

from django_executors import ThreadPoolExecutor

pytestmark = pytest.mark.usefixtures("run_inline")


def test_each_task_starts_as_the_initializer_left_it() -> None:
    """With inherit_context=False as in a worker; the initializer runs once in this thread."""
    ran: list[str] = []

    def initialize() -> None:
        ran.append("initializer")
        translation.activate("de")

    def task() -> str | None:
        before = translation.get_language()
        translation.activate("fr")
        return before

    with ThreadPoolExecutor(1, initializer=initialize, inherit_context=False) as pool:
        assert [pool.submit(task).result() for _ in range(3)] == ["de"] * 3
    assert ran == ["initializer"]
    assert translation.get_language() == "en-us"


def test_the_initializer_changes_nothing_for_tasks_that_inherit() -> None:
    """As in a worker: they have their submitter's context."""
    with ThreadPoolExecutor(1, initializer=translation.activate, initargs=("de",)) as pool:
        assert [pool.submit(translation.get_language).result() for _ in range(2)] == ["en-us"] * 2


def test_an_initializer_may_submit_to_its_own_pool() -> None:
    """It runs once all the same."""
    ran: list[str] = []

    def initialize() -> None:
        ran.append("initializer")
        pool.submit(ran.append, "its task").result()

    with ThreadPoolExecutor(1, initializer=initialize) as pool:
        pool.submit(ran.append, "the task").result()
    assert ran == ["initializer", "its task", "the task"]
