"""Run by pytest with pytest-django; cases_pytest.ini says `executors_run_inline = true`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import TestCase

from django_executors.testing import run_inline as inline

from .checks import check, names, runs_inline
from .orders import work

of_all_work = pytest.mark.parametrize("of", work.ALL, ids=lambda of: of.__name__)
real_workers = pytest.mark.run_inline(False)


@pytest.mark.django_db
@of_all_work
def test_setting(of: Callable[[], set[str]]) -> None:
    """The setting is enough."""
    assert runs_inline()
    check(of)


@real_workers
@pytest.mark.usefixtures("db", "run_inline")
@of_all_work
def test_fixture(of: Callable[[], set[str]]) -> None:
    """So is the fixture."""
    assert runs_inline()
    check(of)


@pytest.mark.run_inline
def test_marker(db: None) -> None:
    """So is the marker."""
    check(work.map_and_count)


@pytest.fixture
def rows(db: None) -> set[str]:
    return work.submit()


def test_in_a_fixture(rows: set[str]) -> None:
    """A test's fixtures run inline too."""
    check(work.map_and_count, rows)


@real_workers
def test_off() -> None:
    """The marker turns it off."""
    assert not runs_inline()


@real_workers
class TestOff:
    """For a class too."""

    def test_off(self) -> None:
        assert not runs_inline()

    @pytest.mark.run_inline(True)
    def test_on(self, db: None) -> None:
        check(work.submit)

    def test_block(self, db: None) -> None:
        with inline():
            check(work.close_all)
        assert not runs_inline()


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
