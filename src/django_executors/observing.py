"""Who is told how long tasks and connections take: the exporters of `metrics`, if there are any.

Where nobody observes, it costs a task one look at `observer`, and no call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Observer(Protocol):
    """Is told of durations, in seconds, in the threads of tasks: it must not raise, nor use the ORM.

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


class _Several:
    """Tells each of them."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def task_ended(self, *told: Any) -> None:
        for each in self._observers:
            each.task_ended(*told)

    def connected(self, alias: str, seconds: float) -> None:
        for each in self._observers:
            each.connected(alias, seconds)

    def had_turn(self, alias: str, seconds: float) -> None:
        for each in self._observers:
            each.had_turn(alias, seconds)

    def had_no_turn(self, alias: str) -> None:
        for each in self._observers:
            each.had_no_turn(alias)

    def used(self, alias: str, seconds: float) -> None:
        for each in self._observers:
            each.used(alias, seconds)


#: The one to tell; None: there is nobody.
observer: Observer | None = None


def observe(another: Observer) -> None:
    """Tell this one too, from now on."""
    global observer
    observer = another if observer is None else _Several(observer, another)
