"""Run by Django's own test runner."""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.test import SimpleTestCase, TestCase, TransactionTestCase

from django_executors.testing import run_inline

from .checks import check, names, runs_inline
from .orders import work

OF_THE_CLASS = {"of the class", "of the class too"}


@run_inline
class Decorated(TestCase):
    """A decorated class: its `setUpTestData`, its `setUp` and its tests run inline."""

    @classmethod
    def setUpTestData(cls) -> None:
        assert set(work.POOL.map(work.add, OF_THE_CLASS)) == OF_THE_CLASS
        work.POOL.submit(work.close_old_connections).result(10)

    def setUp(self) -> None:
        assert runs_inline()


class OfADecoratedClass(Decorated):
    """A subclass is covered too: one test for each thing that the project does."""


for _work in work.ALL:
    setattr(OfADecoratedClass, f"test_{_work.__name__}", lambda self, of=_work: check(of, OF_THE_CLASS))


class Functions(TestCase):
    """Each way to say it for a part of a class. Outside it, real workers run the tasks."""

    def setUp(self) -> None:
        assert not runs_inline()

    def tearDown(self) -> None:
        assert not runs_inline()

    @run_inline
    def test_bare(self) -> None:
        check(work.map_and_count)

    def test_block(self) -> None:
        with run_inline():
            check(work.pool_of_its_own)
        assert not runs_inline()

    @run_inline()
    async def test_async(self) -> None:
        await sync_to_async(check)(work.nested)
        await sync_to_async(work.close_old)()
        assert await sync_to_async(runs_inline)()

    async def test_async_block(self) -> None:
        with run_inline():
            await sync_to_async(check)(work.callbacks)
        assert not await sync_to_async(runs_inline)()


class Neither(SimpleTestCase):
    """Runs after all that are decorated."""

    def test_real_workers(self) -> None:
        assert not runs_inline()


class Last(TransactionTestCase):
    """Runs last, and empties no table before: what any test had committed would be here."""

    def test_nothing_was_committed(self) -> None:
        assert names() == set()
