"""The name by which logs and records call a task, and several of them."""

from __future__ import annotations

import contextvars
import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

#: The most names in a record.
_NAMED = 10


def task_name(fn: Callable[..., Any]) -> str:
    """Return the qualified name of what a task runs, as in `shop.reports.rebuild`.

    A partial is called by what it wraps, and `asyncio.to_thread`'s `Context.run` by what that runs.
    """
    try:
        return _name(fn)
    except Exception:  # noqa: BLE001 - a proxy that raises whatever it is asked
        return type(fn).__qualname__


def _name(fn: Callable[..., Any]) -> str:
    while isinstance(fn, functools.partial):
        runs_in_context = isinstance(getattr(fn.func, "__self__", None), contextvars.Context)
        fn = fn.args[0] if runs_in_context and fn.args else fn.func
    name = getattr(fn, "__qualname__", None)
    if not isinstance(name, str):
        fn = type(fn)
        name = fn.__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if isinstance(module, str) else name


def log(
    logger: logging.Logger,
    level: int,
    text: str,
    *,
    exc_info: BaseException | bool | None = None,
    **fields: Any,
) -> None:
    """Log this text with its fields, which the record has as attributes too."""
    record = functools.partial(logger.log, level, text, fields, exc_info=exc_info, stacklevel=2)
    try:
        record(extra=fields)
    except KeyError:  # the project's own record factory has set one of them
        record()


def listed(names: Counter[str]) -> str:
    """Return how many there are and the most frequent names, as in `3 (shop.mail x2, shop.index x1)`."""
    if not names:
        return "0"
    listed = [f"{name} x{count}" for name, count in names.most_common(_NAMED)]
    if len(names) > _NAMED:
        listed.append(f"and {len(names) - _NAMED} more")
    return f"{names.total()} ({', '.join(listed)})"
