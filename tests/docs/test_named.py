"""The code of `docs/named.md`, run as it is written."""

from __future__ import annotations

import threading
import unittest

import pytest
from django.db import transaction
from django.test import TestCase, override_settings

from django_executors import ThreadPoolExecutor, executors
from django_executors.checks import check_settings
from tests.projects.testapp.models import Entry
from tests.support.pages import TUTORIAL, defined_by, plain_blocks

SETTINGS, SHOP, TEST, GUNICORN = plain_blocks(TUTORIAL.with_name("named.md"))


def test_the_shop() -> None:
    """With the page's settings, its functions submit to the pools that these name."""
    sent: list[tuple[int, str]] = []

    def send_confirmation(pk: int) -> None:
        sent.append((Entry.objects.get(pk=pk).pk, threading.current_thread().name))

    shop = defined_by(SHOP, send_confirmation=send_confirmation, total_of=len)
    with override_settings(EXECUTORS=defined_by(SETTINGS)["EXECUTORS"]):
        assert check_settings() == []
        with transaction.atomic():
            entry = Entry.objects.create(name="an order")
            shop["confirm"](entry)
        assert shop["totals"](["ab", "c"]) == [2, 1]
        defined_by(GUNICORN)["worker_exit"](None, None)
        assert [name for _, name in sent] == ["mails_0"]
        for alias in executors:
            with pytest.raises(RuntimeError, match="after shutdown"):
                executors[alias].submit(print)


def test_the_test() -> None:
    """The page's test case has the named pool run in the test's own thread."""
    case = defined_by(TEST, TestCase=TestCase, override_settings=override_settings)["ConfirmationTests"]
    found = []

    class Case(case):  # type: ignore[misc]
        def test(self) -> None:
            found.append(executors["mails"].submit(threading.get_ident).result())
            assert isinstance(executors["default"], ThreadPoolExecutor)

    result = unittest.TestResult()
    unittest.TestSuite([Case("test")]).run(result)
    assert (result.errors, result.failures) == ([], [])
    assert found == [threading.get_ident()]
