"""The name by which logs and records call a task."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any


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
