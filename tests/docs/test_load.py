"""The code of `docs/load.md`, and what `docs/testing.md` says of queries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import override_settings

from django_executors import ThreadPoolExecutor, executors
from django_executors.testing import assert_num_queries, capture_queries
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver
from tests.support.pages import TUTORIAL, defined_by, plain_blocks

PAGE = TUTORIAL.with_name("load.md")

pytestmark = pytest.mark.usefixtures("idle_before_and_after")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


(SETTINGS,) = plain_blocks(PAGE)


def test_the_settings(postgres: PostgresObserver) -> None:
    """Workers keep their connections from page to page."""
    found = defined_by(SETTINGS)
    with override_settings(EXECUTORS=found["EXECUTORS"]):
        pool = executors["default"]
        for _ in range(2):
            assert not len(pool.load(Entry.objects.all()))
        assert pool.stats().connections_opened == 1
        executors.shutdown()
    connection.close()
    assert not postgres.left()


def test_queries(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    connection.close()

    # queries: begin
    with assert_num_queries(2):
        count = pool.submit(Entry.objects.count)
        entries = pool.load(Entry.objects.order_by("name"))
        assert len(entries) == count.result()

    with capture_queries() as queries:
        pool.submit(Entry.objects.count).result()
    assert queries[0]["alias"] == "default"
    assert queries[0]["task"].endswith("QuerySet.count")
    # queries: end

    connection.close()
    assert not postgres.left()
