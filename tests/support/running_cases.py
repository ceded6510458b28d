"""Run a unittest case inside a test."""

from __future__ import annotations

import unittest


def run_case(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


def passes(case: type[unittest.TestCase]) -> None:
    """Run it, and see that its one test passes."""
    result = run_case(case)
    assert result.wasSuccessful(), [text for _, text in [*result.errors, *result.failures]]
    assert (result.testsRun, result.skipped) == (1, [])
