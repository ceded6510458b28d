"""Run by pytest with pytest-django; cases_pytest.ini says `executors_run_inline = true`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import TestCase

from .checks import check, names, runs_inline
from .orders import work

real_workers = pytest.mark.run_inline(False)


@pytest.mark.django_db
@pytest.mark.parametrize("of", work.ALL, ids=lambda of: of.__name__)
def test_setting(of: Callable[[], set[str]]) -> None:
    """The setting is enough."""
    assert runs_inline()
    check(of)


@real_workers
@pytest.mark.usefixtures("db", "run_inline")
def test_fixture() -> None:
    """So is the fixture."""
    check(work.submit)


@pytest.fixture
def rows(db: None) -> set[str]:
    return work.submit()


@pytest.mark.run_inline
def test_in_a_fixture(rows: set[str]) -> None:
    """A test's fixtures run inline too."""
    check(work.map_and_count, rows)


class OfDjango(TestCase):
    """A TestCase's class set-up is covered by the setting."""

    @classmethod
    def setUpTestData(cls) -> None:
        assert work.map_and_count() == {"a", "b", "c"}

    def test_one(self) -> None:
        check(work.close_old, {"a", "b", "c"})

    def test_two(self) -> None:
        check(work.nested, {"a", "b", "c"})


@real_workers
@pytest.mark.django_db(transaction=True)
def test_nothing_was_committed() -> None:
    """Run last: what any test had committed would be here."""
    assert names() == set()
    assert not runs_inline()
