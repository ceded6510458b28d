"""Errors that name what cannot be pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django_executors.lifecycle.naming import task_name


def of_call(
    error: Exception,
    dumps: Callable[[Any], object],
    fn: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Exception:
    """Return an error that says what of this call cannot be pickled."""
    parts = [("the function", fn)]
    parts += [(f"argument {place}", value) for place, value in enumerate(args, 1)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for part, value in parts:
        try:
            dumps(value)
        except Exception:  # noqa: BLE001 - of whatever class
            named = pickle.PicklingError(
                f"{part} of task={task_name(fn)}, a {type(value).__qualname__}, cannot be pickled: "
                f"{error}"
            )
            named.__cause__ = error
            return named
    return error


def of_outcome(error: Exception, fn: Any, value: object, *, failed: bool) -> pickle.PicklingError:
    """Return an error that says which task's result, or error, cannot be pickled."""
    what = "error" if failed else f"result, a {type(value).__qualname__},"
    named = pickle.PicklingError(f"the {what} of task={task_name(fn)} cannot be pickled: {error}")
    named.__cause__ = error
    return named


def of_outcome_here(error: BaseException, fn: Any, *, failed: bool) -> pickle.UnpicklingError:
    """Return an error that says which task's result, or error, has come but cannot be unpickled."""
    what = "error" if failed else "result"
    named = pickle.UnpicklingError(f"the {what} of task={task_name(fn)} cannot be unpickled: {error}")
    named.__cause__ = error
    return named
