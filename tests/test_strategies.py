"""The extension point: a package says how sessions of its own wrapper class are made fresh."""

from __future__ import annotations

import logging
import sys
import threading
import types
from typing import Any

import pytest
from django.db import connection

from django_executors.lifecycle import sessions
from django_executors.lifecycle.postgresql import PostgreSQLSessions

from .subclassed_backend.base import DatabaseWrapper
from .test_fresh_sessions import backend_pid, execute, one_after_the_other, scalar

pytestmark = pytest.mark.usefixtures("collector_off")

METHODS = ["remember", "is_unchanged", "begin_reset", "finish_reset"]


class Recording(PostgreSQLSessions):
    """A package's strategy: it records its calls, and can be told to fail in one of them."""

    wrapper_classes = ("tests.subclassed_backend.base.DatabaseWrapper",)

    def __init__(self, fails_in: str = "", error: Exception | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self._fails_in = fails_in
        self._error = error

    def _called(self, name: str) -> None:
        self.calls.append((name, threading.get_ident()))
        if name == self._fails_in and self._error is not None:
            raise self._error

    def remember(self, wrapper: Any) -> Any | None:
        self._called("remember")
        return None if self._fails_in == "remember" else super().remember(wrapper)

    def is_unchanged(self, wrapper: Any, memory: Any) -> bool:
        self._called("is_unchanged")
        return self._fails_in != "is_unchanged" and super().is_unchanged(wrapper, memory)

    def begin_reset(self, wrapper: Any) -> None:
        self._called("begin_reset")
        super().begin_reset(wrapper)

    def finish_reset(self, driver: Any, deadline: float) -> None:
        self._called("finish_reset")
        super().finish_reset(driver, deadline)


@pytest.fixture(autouse=True)
def strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten at its end, and the alias is of the package's class."""
    monkeypatch.setattr(sessions, "_strategies", dict(sessions._strategies))
    monkeypatch.setattr(sessions, "_given_up", set())
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "tests.subclassed_backend")


def pid_and_thread() -> tuple[int, int]:
    execute("SET work_mem = '123kB'")
    return backend_pid(), threading.get_ident()


def use_class(monkeypatch: pytest.MonkeyPatch, wrapper_class: type) -> str:
    """Make a backend of this class, use it, and return the name by which a strategy names it."""
    base = types.ModuleType("homemade.base")
    vars(base)["DatabaseWrapper"] = wrapper_class
    monkeypatch.setitem(sys.modules, "homemade", types.ModuleType("homemade"))
    monkeypatch.setitem(sys.modules, "homemade.base", base)
    monkeypatch.setitem(connection.settings_dict, "ENGINE", "homemade")
    return f"{wrapper_class.__module__}.{wrapper_class.__qualname__}"


def test_a_registered_class_is_reset() -> None:
    """Sessions of a class that a strategy names are reset in place, by it, in the worker's thread."""
    strategy = Recording()
    sessions.register(strategy)
    (first, thread), (second, _), work_mem = one_after_the_other(
        pid_and_thread, pid_and_thread, lambda: scalar("SHOW work_mem")
    )
    assert first == second
    assert work_mem == "4MB"
    one_reset = ["is_unchanged", "begin_reset", "finish_reset"]
    assert [name for name, _ in strategy.calls] == ["remember", *one_reset, *one_reset]
    assert {ident for _, ident in strategy.calls} == {thread}
    assert thread != threading.get_ident()


def test_the_last_one_registered_is_used() -> None:
    """A strategy takes the place of an earlier one for the same class."""
    earlier, later = Recording(), Recording()
    sessions.register(earlier)
    sessions.register(later)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first == second
    assert later.calls
    assert not earlier.calls


@pytest.mark.parametrize("declines_in", ["remember", "is_unchanged"])
def test_a_strategy_may_decline(declines_in: str) -> None:
    """A strategy that says no has the connection closed; every task works."""
    strategy = Recording(declines_in)
    sessions.register(strategy)
    pids = one_after_the_other(*[backend_pid] * 4)
    assert len(set(pids)) == 4
    assert "begin_reset" not in {name for name, _ in strategy.calls}


@pytest.mark.parametrize("error", [RuntimeError("refused"), ConnectionError("gone")], ids=repr)
@pytest.mark.parametrize("fails_in", METHODS)
def test_a_strategy_that_raises(fails_in: str, error: Exception) -> None:
    """Whatever a strategy raises, wherever, no task fails and none gets a session that was used."""
    sessions.register(Recording(fails_in, error))
    pids = one_after_the_other(*[backend_pid] * 4)
    assert len(set(pids)) == 4


def test_after_a_refused_reset_none_is_begun(caplog: pytest.LogCaptureFixture) -> None:
    """After the first reset that the server refused none is begun, and one warning says so."""
    strategy = Recording("finish_reset", RuntimeError("refused"))
    sessions.register(strategy)
    with caplog.at_level(logging.WARNING):
        one_after_the_other(*[backend_pid] * 4)
        one_after_the_other(*[backend_pid] * 2)
    assert [name for name, _ in strategy.calls].count("begin_reset") == 1
    (record,) = caplog.records
    assert "alias=default a session could not be reset" in record.getMessage()


def test_a_lost_server_says_nothing_against_resets(caplog: pytest.LogCaptureFixture) -> None:
    """After a reset that met no server the next one is begun all the same, without a warning."""
    strategy = Recording("finish_reset", ConnectionError("gone"))
    sessions.register(strategy)
    one_after_the_other(*[backend_pid] * 4)
    assert [name for name, _ in strategy.calls].count("begin_reset") == 3
    assert not caplog.records


class FurtherSubclass(DatabaseWrapper):
    """A subclass of the class that the package's strategy names."""


def test_a_subclass_of_a_named_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy is not used for a subclass of what it names: its connections are closed."""
    strategy = Recording()
    sessions.register(strategy)
    use_class(monkeypatch, FurtherSubclass)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second
    assert not strategy.calls


class Proxy:
    """A driver's connection as other drivers have it: none of libpq's functions."""

    def __init__(self, driver: Any) -> None:
        vars(self)["_driver"] = driver

    def __getattr__(self, name: str) -> Any:
        if name == "pgconn":
            raise AttributeError(name)
        return getattr(vars(self)["_driver"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_driver"], name, value)


class WithoutLibpq(DatabaseWrapper):
    """A wrapper as Django's own is on psycopg2."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        return Proxy(super().get_new_connection(conn_params))


def test_a_driver_without_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose connection has no `pgconn`, like psycopg2's, is closed after each task."""
    strategy = Recording()
    strategy.wrapper_classes = (use_class(monkeypatch, WithoutLibpq),)
    sessions.register(strategy)
    first, second = one_after_the_other(backend_pid, backend_pid)
    assert first != second
    assert {name for name, _ in strategy.calls} == {"remember"}
