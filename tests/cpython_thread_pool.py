"""Run CPython's own thread-pool tests with our class in the standard one's place; print what came of it.

A script: `python -m tests.cpython_thread_pool`. The last line of its output is JSON.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
import json
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import django_executors

calls = {"pools": 0, "submits": 0}


class ThreadPoolExecutor(django_executors.ThreadPoolExecutor):
    """Ours, counted. The name is that of the standard class, which some tests look for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        calls["pools"] += 1
        super().__init__(*args, **kwargs)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        calls["submits"] += 1
        return super().submit(fn, *args, **kwargs)


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests whose executor is the thread pool."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        elif getattr(test, "executor_type", None) is ThreadPoolExecutor:
            yield test


def main() -> None:
    vars(concurrent.futures)["ThreadPoolExecutor"] = ThreadPoolExecutor
    vars(concurrent.futures.thread)["ThreadPoolExecutor"] = ThreadPoolExecutor
    found = unittest.defaultTestLoader.loadTestsFromName("test.test_concurrent_futures")
    result = unittest.TextTestRunner(sys.stderr).run(unittest.TestSuite(cases(found)))
    failed = [test.id() for test, _ in [*result.failures, *result.errors]]
    skipped = [test.id() for test, _ in result.skipped]
    print()  # ends the line of durations that the tests print
    print(json.dumps(calls | {"run": result.testsRun, "failed": failed, "skipped": skipped}))


if __name__ == "__main__":
    main()
