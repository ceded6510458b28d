"""Run CPython's own tests of a pool with our class in the standard one's place; print what came of it.

A script: `python -m tests.support.cpython_pools thread`. The last line of its output is JSON.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import json
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import django_executors

calls = {"pools": 0, "submits": 0}


class Counted:
    """Counts the pools and what is submitted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        calls["pools"] += 1
        super().__init__(*args, **kwargs)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        calls["submits"] += 1
        return super().submit(fn, *args, **kwargs)  # type: ignore[misc]


# The names are those of the standard classes, which some tests look for.
class ThreadPoolExecutor(Counted, django_executors.ThreadPoolExecutor):
    """Ours, counted."""


class ProcessPoolExecutor(Counted, django_executors.ProcessPoolExecutor):
    """Ours, counted."""


def cases(suite: unittest.TestSuite, executor_type: type) -> Iterator[unittest.TestCase]:
    """Yield the tests of this executor."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test, executor_type)
        elif getattr(test, "executor_type", None) is executor_type:
            yield test


def main(kind: str) -> None:
    executor_type = {"thread": ThreadPoolExecutor, "process": ProcessPoolExecutor}[kind]
    for module in (concurrent.futures, getattr(concurrent.futures, kind)):
        vars(module)[executor_type.__name__] = executor_type
    found = unittest.defaultTestLoader.loadTestsFromName("test.test_concurrent_futures")
    result = unittest.TextTestRunner(sys.stderr).run(unittest.TestSuite(cases(found, executor_type)))
    failed = [test.id() for test, _ in [*result.failures, *result.errors]]
    skipped = [test.id() for test, _ in result.skipped]
    print()  # ends the line of durations that the tests print
    print(json.dumps(calls | {"run": result.testsRun, "failed": failed, "skipped": skipped}))


if __name__ == "__main__":
    main(sys.argv[1])
