"""Who is told how long tasks and connections take: the exporters of `metrics`, if there are any.

Where nobody observes, it costs a task one look at `observer`, and no call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from .naming import log

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told of durations, in seconds, in the threads of tasks: it must not use the ORM.

    None of these is called under one of this library's locks, or by the garbage collector.
    """

    def task_ended(
        self, executor: str, fn: Callable[..., Any], failed: bool, waited: float, ran: float
    ) -> None:
        """A task of the executor of this name has ended."""
        ...

    def connected(self, alias: str, seconds: float) -> None:
        """A connection was opened, which took that long."""
        ...

    def had_turn(self, alias: str, seconds: float) -> None:
        """A thread had its turn under the ceiling, after that long."""
        ...

    def had_no_turn(self, alias: str) -> None:
        """A thread has waited for its turn until the timeout."""
        ...

    def used(self, alias: str, seconds: float) -> None:
        """A task, or a scope, has let go of a connection that it had for that long."""
        ...


class _All:
    """Tells each of them. What one raises is logged, once, and no task's affair."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers
        self._failed: set[int] = set()

    def _tell(self, what: str, *told: Any) -> None:
        for each in self.observers:
            try:
                getattr(each, what)(*told)
            except Exception:  # noqa: BLE001 - of an exporter's own, of whatever class
                if id(each) not in self._failed:
                    self._failed.add(id(each))
                    log(
                        logger,
                        logging.ERROR,
                        "exporter=%(exporter)s raised, and misses some of the metrics",
                        exc_info=True,
                        exporter=type(each).__qualname__,
                    )

    def task_ended(self, *told: Any) -> None:
        self._tell("task_ended", *told)

    def connected(self, *told: Any) -> None:
        self._tell("connected", *told)

    def had_turn(self, *told: Any) -> None:
        self._tell("had_turn", *told)

    def had_no_turn(self, *told: Any) -> None:
        self._tell("had_no_turn", *told)

    def used(self, *told: Any) -> None:
        self._tell("used", *told)


#: Tells those that there are; None: there is nobody.
observer: _All | None = None


def observe(another: Observer) -> None:
    """Tell this one too, from now on."""
    global observer
    observer = _All(*(() if observer is None else observer.observers), another)
