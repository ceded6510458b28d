"""A library that owns its pool, and takes an executor as a parameter.

It hands its callbacks to whatever threads it has. Where it takes an executor, give it one of ours;
where it takes none, give it a callback in a `connection_scope`.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable

import pytest

from django_executors import ThreadPoolExecutor, all_connections, connection_scope
from tests.projects.testapp.models import Entry
from tests.support.observers import PostgresObserver


class Feed:
    """The library: it knows nothing of Django, and is particular about what it takes."""

    def __init__(
        self,
        handle: Callable[[str], object],
        *,
        executor: concurrent.futures.ThreadPoolExecutor | None = None,
    ) -> None:
        if not isinstance(executor, concurrent.futures.ThreadPoolExecutor | None):
            raise TypeError("executor must be a ThreadPoolExecutor")
        self._handle = handle
        self._executor = executor or concurrent.futures.ThreadPoolExecutor(4)

    def read(self, lines: Iterable[str]) -> int:
        """Handle each line, and return how many were handled."""
        futures = [self._executor.submit(self._handle, line) for line in lines]
        done, _ = concurrent.futures.wait(futures, timeout=10)
        for future in concurrent.futures.as_completed(done, timeout=10):
            future.result()
        return len(done)


LINES = ("first", "second", "third", "fourth", "fifth", "sixth")


def store(line: str) -> None:
    Entry.objects.create(name=line)


def feed_of_the_library() -> Feed:
    return Feed(store)


def feed_with_our_executor() -> Feed:
    return Feed(store, executor=ThreadPoolExecutor(max_workers=4))


def feed_with_a_scope() -> Feed:
    return Feed(connection_scope(store))


@pytest.mark.assert_no_open_connections(False)
@pytest.mark.usefixtures("leaked_before")
def test_before(postgres: PostgresObserver) -> None:
    """The library's own threads keep their connections."""
    assert feed_of_the_library().read(LINES) == len(LINES)
    assert postgres.backends()


@pytest.mark.usefixtures("conn_max_age")
@pytest.mark.parametrize("make_feed", [feed_with_our_executor, feed_with_a_scope])
def test_line_of_the_docs(make_feed: Callable[[], Feed], postgres: PostgresObserver) -> None:
    """One line where the library is set up, and nothing is left, while it goes on living."""
    feed = make_feed()
    for _ in range(3):
        assert feed.read(LINES) == len(LINES)
        assert all_connections() == ()
        assert not postgres.left()
    assert Entry.objects.count() == 3 * len(LINES)
