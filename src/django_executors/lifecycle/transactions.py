"""A warning for tasks that are submitted inside an open transaction of their submitter."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from .holder import Holder
from .naming import task_name

logger = logging.getLogger(__name__)

#: What stands between a call of `submit` and the code that wants it.
_ON_THE_WAY = ("django_executors", "concurrent", "asyncio", "contextlib", "functools")

#: So many call sites are remembered: code may be made while a process runs.
_MOST = 1000

_warned: dict[tuple[str, int], object] = {}


def warn_if_open(holder: Holder, fn: Callable[..., Any]) -> None:
    """Log one warning for each call site that submits a task inside an `atomic`, a test's own aside."""
    aliases = [entry.alias for entry in holder.copied() if _is_in_atomic(entry.wrapper())]
    if not aliases:
        return
    site = _call_site()
    this = object()
    if len(_warned) >= _MOST:
        _warned.clear()
    if _warned.setdefault(site, this) is not this:
        return
    with contextlib.suppress(Exception):  # a log handler's own
        logger.warning(
            "task=%s alias=%s at=%s:%s submitted inside an open transaction: the worker does not see "
            "what this transaction has not committed, and may wait for its locks for ever. Submit after "
            "the commit: by submit_on_commit where the executor has it, or by transaction.on_commit",
            task_name(fn),
            ",".join(sorted(aliases)),
            *site,
        )


def _is_in_atomic(wrapper: Any) -> bool:
    # Private names of Django's, by which `atomic(durable=True)` too leaves a TestCase's own out.
    return wrapper is not None and not all(block._from_testcase for block in wrapper.atomic_blocks)


def _call_site() -> tuple[str, int]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
