"""A task that is submitted inside an open transaction: one warning for each call site."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import path

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.lifecycle import transactions
from django_executors.testing import run_inline

from .testapp.models import Entry

LOGGER = "django_executors.lifecycle.transactions"

pool = ThreadPoolExecutor(2)


@pytest.fixture(autouse=True)
def none_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transactions, "_warned", {})
    yield
    connections.close_all()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def in_test_case(case: type[SimpleTestCase]) -> None:
    result = unittest.TestResult()
    unittest.TestSuite([case("test_it")]).run(result)  # with its class's set-up
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def in_atomic() -> None:
    with transaction.atomic():
        pool.submit(int).result(10)


def in_savepoint() -> None:
    with transaction.atomic(), transaction.atomic():
        pool.submit(int).result(10)


def in_durable() -> None:
    with transaction.atomic(durable=True):
        pool.submit(int).result(10)


def in_one_that_rolls_back() -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        pool.submit(int).result(10)


def in_a_worker() -> None:
    def outer() -> None:
        with transaction.atomic():
            pool.submit(int)

    pool.submit(outer).result(10)


def by_map() -> None:
    with transaction.atomic():
        assert list(pool.map(int, ["1"])) == [1]


def in_an_atomic_of_a_test_case() -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            with transaction.atomic():
                pool.submit(int).result(10)

    in_test_case(Case)


def in_a_transaction_test_case() -> None:
    class Case(TransactionTestCase):
        available_apps = ()

        def test_it(self) -> None:
            with transaction.atomic():
                pool.submit(int).result(10)

    in_test_case(Case)


def view(request: HttpRequest) -> HttpResponse:
    pool.submit(int).result(10)
    return HttpResponse()


urlpatterns = [path("", view)]


def in_atomic_requests() -> None:
    settings = connections.settings["default"]
    settings["ATOMIC_REQUESTS"] = True
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"]):
            assert Client().get("/").status_code == 200
    finally:
        settings["ATOMIC_REQUESTS"] = connection.settings_dict["ATOMIC_REQUESTS"] = False


@pytest.mark.parametrize(
    "do",
    [
        in_atomic,
        in_savepoint,
        in_durable,
        in_one_that_rolls_back,
        in_a_worker,
        by_map,
        in_an_atomic_of_a_test_case,
        in_a_transaction_test_case,
        in_atomic_requests,
    ],
)
def test_speaks(do: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """One warning names task, alias, place and the way out, however often it is submitted there."""
    for _ in range(3):
        do()
    (message,) = said(caplog)
    assert message.startswith("task=builtins.int alias=default at=")
    assert f"at={__file__}:" in message
    assert "submit_on_commit" in message

    assert caplog.records[-1].levelno == logging.WARNING


def outside() -> None:
    Entry.objects.count()
    pool.submit(int).result(10)


def after_it() -> None:
    with transaction.atomic():
        Entry.objects.count()
    pool.submit(int).result(10)


def on_commit() -> None:
    with transaction.atomic():
        transaction.on_commit(functools.partial(pool.submit, int))


def in_a_test_case() -> None:
    class Case(TestCase):
        def test_it(self) -> None:
            Entry.objects.count()
            pool.submit(int).result(10)
            with self.subTest():
                pool.submit(int).result(10)
            with self.captureOnCommitCallbacks(execute=True):
                transaction.on_commit(lambda: pool.submit(int))

    in_test_case(Case)


def immediately() -> None:
    with transaction.atomic(), ImmediateExecutor() as executor:
        executor.submit(Entry.objects.count)


def inline() -> None:
    with transaction.atomic(), run_inline():
        pool.submit(Entry.objects.count)


def in_another_threads() -> None:
    def submit() -> None:
        pool.submit(int).result(10)

    with transaction.atomic(), concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(submit).result(10)


def without_autocommit() -> None:
    connection.set_autocommit(False)
    try:
        pool.submit(int).result(10)
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def in_a_fresh_task() -> None:
    def outer() -> None:
        with transaction.atomic():
            Entry.objects.count()
        pool.submit(int)

    pool.submit(outer).result(10)


@pytest.mark.parametrize(
    "do",
    [
        outside,
        after_it,
        on_commit,
        in_a_test_case,
        immediately,
        inline,
        in_another_threads,
        without_autocommit,
        in_a_fresh_task,
    ],
)
def test_is_silent(do: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """Not a word without an open `atomic` of the submitter's own, nor where the task runs inside it."""
    do()
    assert said(caplog) == []


def test_each_call_site(caplog: pytest.LogCaptureFixture) -> None:
    """Each place is told of once; every open alias is named."""
    with transaction.atomic(), transaction.atomic("other"):
        for _ in range(3):
            pool.submit(int)
        pool.submit(str)
    first, second = said(caplog)
    assert first.startswith("task=builtins.int alias=default,other at=")
    assert second.startswith("task=builtins.str alias=default,other at=")


def test_places_are_forgotten(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is made as the process runs does not fill the memory."""
    monkeypatch.setattr(transactions, "_MOST", 10)
    with transaction.atomic():
        for number in range(100):
            code = "\n" * number + "pool.submit(int)"
            exec(compile(code, "made", "exec"), {"__name__": "made", "pool": pool})
    assert len(said(caplog)) == 100
    assert len(transactions._warned) <= 10


def test_broken_log_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log handler that raises does not keep the task from being submitted."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(transactions.logger, "warning", fail)
    with transaction.atomic():
        assert pool.submit(int).result(10) == 0


def test_it_is_true() -> None:
    """The worker does not see the row before the commit, and sees it in a task of `on_commit`."""
    seen: list[concurrent.futures.Future[bool]] = []
    with transaction.atomic():
        entry = Entry.objects.create(name="new")
        exists = Entry.objects.filter(pk=entry.pk).exists
        assert not pool.submit(exists).result(10)
        transaction.on_commit(lambda: seen.append(pool.submit(exists)))
    assert seen[0].result(10)
    entry.delete()
