"""The pytest plugin, which pytest finds by itself. See `django_executors.testing`.

- fixtures `capture_queries` and `assert_num_queries`: the functions
- fixture `run_inline`, and the setting `executors_run_inline = true` for all tests
- setting `executors_assert_no_open_connections = true`: checks every test, its fixtures included
- markers `run_inline` and `assert_no_open_connections`: on for one test or class, or off with `(False)`
- before pytest-django drops the test databases, executors are drained

pytest loads this module in every project of the environment, so imports that need Django are deferred.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .capturing import CapturedQueries

_SETTINGS = {
    "run_inline": "Run the tasks of django_executors in the threads that submit them.",
    "assert_no_open_connections": "Fail tests that leave a thread with a database connection.",
}

_INLINE = pytest.StashKey[contextlib.ExitStack]()
_CHECKS = pytest.StashKey[list[contextlib.AbstractContextManager[None]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, what in _SETTINGS.items():
        parser.addini(f"executors_{name}", what, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    for name, what in _SETTINGS.items():
        config.addinivalue_line("markers", f"{name}(on=True): {what}")


def _is_on(node: pytest.Item, name: str) -> bool:
    marker = node.get_closest_marker(name)
    if marker is None:
        is_on = bool(node.config.getini(f"executors_{name}"))
        return is_on and not (name == "run_inline" and _is_for_real_workers(node))
    for on in (True, False):
        if (marker.args, marker.kwargs) in [((on,), {}), ((), {"on": on})]:
            return on
    if marker.args or marker.kwargs:
        pytest.fail(f"@pytest.mark.{name} takes on=True or on=False, and nothing else", pytrace=False)
    return True


def _is_for_real_workers(node: pytest.Item) -> bool:
    from .testing import ExecutorTestMixin

    return issubclass(getattr(node, "cls", None) or object, ExecutorTestMixin)


# Wrappers in the old style, which every pluggy knows.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, None]:
    with contextlib.ExitStack() as stack:
        item.stash[_INLINE] = stack
        yield


# Around the fixtures of the class and the module too, such as a TestCase's setUpTestData.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _is_on(item, "run_inline"):
        from .testing import run_inline

        item.stash[_INLINE].enter_context(run_inline())
    if _is_on(item, "assert_no_open_connections"):
        from .testing import no_open_connections_after

        # One for the end of the test, before the workers are drained if it is the last one, and one
        # for the end of the fixtures of its class and module.
        checks: list[contextlib.AbstractContextManager[None]] = []
        for _ in range(2):
            checks.append(check := no_open_connections_after(getattr(item, "function", None)))
            check.__enter__()
        item.stash[_CHECKS] = checks


@pytest.fixture(autouse=True)
def _no_open_connections(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    _check(request.node)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    _check(item)


def _check(item: pytest.Item) -> None:
    if checks := item.stash.get(_CHECKS, None):
        try:
            checks.pop().__exit__(None, None, None)
        except AssertionError:
            checks.clear()  # once is enough
            raise


@pytest.fixture
def run_inline() -> Iterator[None]:
    """Run the tasks of every executor in the test's thread: `django_executors.testing.run_inline`."""
    from . import testing

    with testing.run_inline():
        yield


@pytest.fixture
def capture_queries() -> Callable[[], CapturedQueries]:
    """`django_executors.testing.capture_queries`."""
    from . import testing

    return testing.capture_queries


@pytest.fixture
def assert_num_queries() -> Callable[[int], CapturedQueries]:
    """`django_executors.testing.assert_num_queries`."""
    from . import testing

    return testing.assert_num_queries


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, None]:
    yield
    if fixturedef.argname == "django_db_setup":
        fixturedef.addfinalizer(_drain)  # the last one added is the first to run


def _drain() -> None:
    from .testing import drain

    drain()
