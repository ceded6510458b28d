"""Calls and outcomes on their way to another process, and errors that name what cannot be pickled."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import process
from typing import Any

from django_executors.naming import task_name

#: A private class of the standard process pool's, which is shown as its text.
_remote_traceback: Callable[[str], Exception] = process._RemoteTraceback  # type: ignore[assignment]

Dumps = Callable[[Any], bytes]

#: Whoever reads of one that cannot be found is to know what can.
_IMPORTED = "A task must be a function at the top of a module that the worker can import"


class UnpicklingError(process.BrokenProcessPool, pickle.UnpicklingError):
    """What has come cannot be loaded: a task in its worker, or a result here.

    Where the standard class breaks its pool for this, whoever handles that handles this; here the pool
    goes on.
    """


def of_call(
    error: Exception, dumps: Dumps, fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
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
                f"{error}" + (f". {_IMPORTED}" if value is fn else "")
            )
            named.__cause__ = error
            return named
    return error


def load_call(packed: bytes) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return a function and its arguments, in the worker.

    Raises:
        UnpicklingError: they cannot be loaded there.
    """
    try:
        return pickle.loads(packed)  # type: ignore[no-any-return]
    except BaseException as error:
        raise UnpicklingError(
            f"the task has come to a worker, but cannot be unpickled there: {_told(error)}. {_IMPORTED}"
        ) from error


def dump_result(dumps: Dumps, fn: Any, result: object) -> bytes:
    """Return a task's result, pickled. It may query as it is: a queryset does.

    Raises:
        PicklingError: it cannot be.
    """
    try:
        return dumps(result)
    except Exception as error:
        raise _unpicklable(f"result, a {type(result).__qualname__},", fn, error) from error


def dump_error(dumps: Dumps, fn: Any, error: BaseException) -> bytes:
    """Return a task's error, pickled so that it can be loaded, with the text of its traceback.

    It may query as it is asked for its text.
    """
    text = "".join(traceback.format_exception(error))
    # They are in the text. Some serializers send them too, with all that they refer to.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        packed = dumps((error, text))
        pickle.loads(packed)
    except BaseException as raised:  # noqa: BLE001 - of whatever class
        packed = dumps((_unpicklable(f"error, a {_told(error)},", fn, raised), text))
    return packed


def load_outcome(packed: bytes, fn: Any, *, failed: bool) -> tuple[Any, bool]:
    """Return a task's result, or error, and whether it is an error, in the process of its submitter."""
    try:
        value = pickle.loads(packed)
        if failed:
            value, text = value
            value.__cause__ = _remote_traceback(f'\n"""\n{text}"""')
    except BaseException as raised:  # noqa: BLE001 - of whatever class
        what = "error" if failed else "result"
        named = UnpicklingError(
            f"the {what} of task={task_name(fn)} has come, but cannot be unpickled here: {_told(raised)}"
        )
        named.__cause__ = raised
        return named, True
    return value, failed


def _unpicklable(what: str, fn: Any, raised: BaseException) -> pickle.PicklingError:
    return pickle.PicklingError(f"the {what} of task={task_name(fn)} cannot be pickled: {raised}")


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"
    except Exception:  # noqa: BLE001 - the user's own `__str__`
        return type(error).__qualname__
