"""Checks of what callers pass in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_KINDS: dict[str, Callable[[object], bool]] = {
    "coroutine": inspect.iscoroutinefunction,
    "asynchronous generator": inspect.isasyncgenfunction,
    "generator": inspect.isgeneratorfunction,
}


def check_seconds(name: str, value: object) -> float:
    """Return a number of seconds, of 0 or more.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 0, not a number (NaN), or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large: float('inf') stands for ever") from None


def check_timeout(timeout: object, *, wait: bool, cancel_queries: bool = False) -> float | None:
    """Return for how many seconds a `shutdown` may wait; None: for as long as it takes.

    Raises:
        TypeError: it is neither None nor a number.
        ValueError: it is no number of seconds, or the caller does not wait at all; or it is None, and
            there is something to be done at its end.
    """
    if timeout is None:
        if cancel_queries:
            raise ValueError("cancel_queries=True is for the end of a timeout: give one, in seconds")
        return None
    seconds = check_seconds("timeout", timeout)
    if not wait:
        raise ValueError(f"timeout says how long to wait: timeout={timeout!r} and wait=False exclude it")
    return seconds


def check_workers(max_workers: object) -> None:
    """Refuse a number of workers that is none. The standard classes look for one that is too small.

    Raises:
        TypeError: it is neither None nor an int.
    """
    if isinstance(max_workers, bool) or not isinstance(max_workers, int | None):
        raise TypeError(f"max_workers must be an int or None, not {max_workers!r}")


def check_count(name: str, value: object) -> None:
    """Refuse what is neither None nor a number of 1 or more.

    Raises:
        TypeError: it is neither None nor an int.
        ValueError: it is below 1.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, or None, not {value!r}")


def check_bound(max_pending: object, when_full: object) -> None:
    """Refuse a bound on the queue that is none.

    Raises:
        TypeError: max_pending is neither None nor an int.
        ValueError: max_pending is below 1, when_full is neither "block" nor "raise", or is "raise"
            without max_pending.
    """
    check_count("max_pending", max_pending)
    if when_full not in ("block", "raise"):
        raise ValueError(f"when_full must be 'block' or 'raise', not {when_full!r}")
    if max_pending is None and when_full != "block":
        raise ValueError(f"when_full={when_full!r} needs max_pending, or the queue is never full")


def check_decorated(decorator: str, fn: Any, *, coroutines: bool = False) -> None:
    """Refuse a function whose body runs after the call has returned.

    Args:
        coroutines: the decorator knows how to decorate coroutine functions.

    Raises:
        TypeError: it is such a function, or none.
    """
    if not callable(fn):
        raise TypeError(f"{decorator} decorates a function, not {fn!r}")
    for kind, is_one in _KINDS.items():
        if (is_one(fn) or is_one(type(fn).__call__)) and not (coroutines and kind == "coroutine"):
            raise TypeError(
                f"{decorator} cannot decorate the {kind} function "
                f"{getattr(fn, '__qualname__', fn)}: its body runs after the call has returned. Use "
                f"`with {decorator}():` around the synchronous part"
            )
