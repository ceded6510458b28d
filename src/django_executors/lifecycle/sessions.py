"""Fresh again: which open session may be made equal to a new one, and who knows how.

At CONN_MAX_AGE = 0 Django promises each request a session of its own. Here each task gets one, and
connecting for it costs many times the query that it is for. A strategy makes a used session fresh in
place, where that is proven right; everywhere else the connection is closed. It is right for the
exact wrapper classes that it names: a subclass may keep state of its own (a tenant, a routing rule)
of which it knows nothing. A package with such a class registers a strategy of its own, in its
`AppConfig.ready`::

    from django_executors.lifecycle import sessions

    sessions.register(TenantStrategy())
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.functional import cached_property

from .attributes import Attributes

logger = logging.getLogger(__name__)

#: The most seconds that a reset may take; then the connection is closed.
RESET_TIMEOUT = 1.0
#: A session is reset only in this many seconds after connecting, so that what a new connection
#: would meet (ALTER ROLE … SET, a fail-over, a changed certificate) arrives.
MAX_RESET_AGE = 60.0


class SessionStrategy(Protocol):
    """Knows how to make a session of some wrapper classes fresh in place.

    Everything is called in the worker that owns the connection. A reset is begun when a task has
    ended and finished when the next one makes its first query, so that nobody waits for the network.
    """

    #: The exact classes, as `"module.QualifiedName"`.
    wrapper_classes: Collection[str]

    def remember(self, wrapper: BaseDatabaseWrapper) -> Any | None:
        """Remember how the driver's connection is set up, right after connecting.

        May ask the server whether a pooler stands in between, as part of connecting. Return None if
        sessions of this alias cannot be reset: its connections are closed after each task then. If it
        raises, that is so for this connection alone.
        """
        ...

    def is_unchanged(self, wrapper: BaseDatabaseWrapper, memory: Any) -> bool:
        """Tell whether the driver's connection is as `remember` met it, without asking the server."""
        ...

    def begin_reset(self, wrapper: BaseDatabaseWrapper) -> None:
        """Ask the server for a new session's state, but for what `connect()` sets up. Do not wait."""
        ...

    def finish_reset(self, driver: Any, deadline: float) -> None:
        """Wait for the answer, until `deadline` by `time.monotonic()`.

        Raises:
            OSError: the server did not answer in time, or has gone away; the connection is closed.
            Exception: the server refused. No session of this alias is reset any more.
        """
        ...


_strategies: dict[str, SessionStrategy] = {}
#: Aliases whose sessions are not reset any more in this process.
_given_up: set[str] = set()


def register(strategy: SessionStrategy) -> None:
    """Use this strategy for the wrapper classes that it names, in place of an earlier one for them."""
    for name in strategy.wrapper_classes:
        _strategies[name] = strategy


def _strategy_for(wrapper: BaseDatabaseWrapper) -> SessionStrategy | None:
    """Return the strategy for this wrapper, or None if its sessions are not reset in place."""
    settings = wrapper.settings_dict
    if (
        settings["CONN_MAX_AGE"] != 0
        or wrapper.alias in _given_up
        or settings["OPTIONS"].get("pool")
        or settings.get("DISABLE_SERVER_SIDE_CURSORS")  # what one sets behind a pooler
    ):
        return None
    return _strategies.get(_name(wrapper))


def _name(wrapper: BaseDatabaseWrapper) -> str:
    return f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"


def give_up(alias: str, why: Exception) -> None:
    """Never again reset a session of this alias in this process, and say so once."""
    if alias not in _given_up:
        _given_up.add(alias)
        logger.warning(
            "alias=%s a session could not be reset: from now on its connections are closed instead",
            alias,
            exc_info=why,
        )


class Snapshot:
    """How a connection was right after connecting, and how to bring it back there."""

    __slots__ = ("_driver", "_wrapper", "strategy")

    def __init__(self, strategy: SessionStrategy, driver: Any, wrapper: Attributes) -> None:
        self.strategy = strategy
        self._driver = driver
        self._wrapper = wrapper

    def still_holds(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Tell whether hooks and flags are as they were: what a reset on the server cannot undo."""
        return (
            wrapper.alias not in _given_up
            and self._wrapper.still_hold(wrapper)
            and self.strategy.is_unchanged(wrapper, self._driver)
        )


def take_snapshot(wrapper: BaseDatabaseWrapper, made: Attributes | None) -> Snapshot | None:
    """Remember this wrapper, which has just connected, if its sessions may be reset in place.

    Args:
        made: its `wrapper_state` when it was made: a task may set hooks before its first query.
    """
    try:
        strategy = _strategy_for(wrapper)
        driver = None if strategy is None else strategy.remember(wrapper)
    except Exception:
        # Connecting went well. Where it cannot be reset, it is closed.
        logger.debug("alias=%s its sessions cannot be reset", wrapper.alias, exc_info=True)
        return None
    if strategy is None or made is None:
        return None
    if driver is None:
        logger.debug(
            "alias=%s its sessions are not reset: not direct, or not with this driver", wrapper.alias
        )
        _given_up.add(wrapper.alias)  # do not ask again
        return None
    return Snapshot(strategy, driver, made)


# What connecting and a wrapper's ordinary work change on it; and its helpers, which refer back to it
# and would be kept alive with it.
_VOLATILE = frozenset(
    {
        "client",
        "creation",
        "features",
        "introspection",
        "ops",
        "validation",
        "_named_cursor_idx",
        "autocommit",
        "close_at",
        "commit_on_exit",
        "connection",
        "health_check_done",
        "health_check_enabled",
        "queries_log",
        "rollback_exc",
        "run_commit_hooks_on_set_autocommit_on",
        "savepoint_state",
    }
)


def wrapper_state(wrapper: BaseDatabaseWrapper) -> Attributes | None:
    """Remember what can be set on a wrapper (hooks, flags), right after it was made.

    None for a class that is neither Django's own nor named by a strategy: it may keep state where
    nobody looks, and no two tasks use the same wrapper of it.
    """
    name = _name(wrapper)
    if name not in _strategies and not name.startswith(("django.db.backends.", "django.contrib.gis.")):
        return None
    django_class = type(wrapper)
    return Attributes(
        wrapper,
        _VOLATILE,
        derived=lambda name: isinstance(getattr(django_class, name, None), cached_property),
    )
