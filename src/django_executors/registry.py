"""The executors that `settings.EXECUTORS` names."""

from __future__ import annotations

import atexit
import inspect
import logging
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from . import conf
from .arguments import check_timeout
from .base import Executor
from .clock import Clock
from .naming import log
from .thread import ThreadPoolExecutor

DEFAULT = "default"

logger = logging.getLogger(__name__)


class Executors:
    """The executors that `settings.EXECUTORS` names, by alias: `executors["default"].submit(...)`.

    Each is made when it is first asked for, and is one for the process, whichever thread asks, not one
    for each thread as `connections` are. "default" is there without a setting too: a
    `ThreadPoolExecutor` as it is by itself. In a forked child each is the child's own, without threads
    and tasks. At exit Python waits for them as for all pools. Iterating gives the aliases. One that has
    broken, as when a worker process has died, is replaced when it is next asked for, with a WARNING.

    After `override_settings(EXECUTORS=...)`, and again at its end, each is made anew. One that somebody
    still refers to goes on; another ends when its tasks have.

    Raises:
        ImproperlyConfigured: EXECUTORS is wrong, or has no such alias.
    """

    def __init__(self) -> None:
        self._made: dict[str, Executor] = {}
        self._is_shut_down = False

    def __getitem__(self, alias: str) -> Executor:
        made = self._made  # at once: a change of the setting replaces it
        executor = made.get(alias)
        # Without a lock: the class's module may be being imported by another thread, and use this. Who
        # puts it there first has made it.
        if executor is None:
            executor = made.setdefault(alias, self._make(alias))
        while (why := executor._why_useless()) is not None:
            successor = self._make(alias)
            if vars(executor).setdefault("_successor", successor) is successor:
                log(
                    logger,
                    logging.WARNING,
                    "executor=%(executor)s is made anew: %(reason)s",
                    executor=alias,
                    reason=why,
                )
            executor = made[alias] = vars(executor)["_successor"]
        return executor

    def _make(self, alias: str) -> Executor:
        executor = make(alias)
        if self._is_shut_down:
            executor.shutdown(wait=False)
        return executor

    def __iter__(self) -> Iterator[str]:
        return iter(named())

    def shutdown(
        self,
        wait: bool = True,
        *,
        cancel_futures: bool = False,
        timeout: float | None = None,
        cancel_queries: bool = False,
    ) -> None:
        """Shut all of them down, one after another in the order in which they were made.

        Those that are first asked for later refuse tasks too. For the end of a process: in gunicorn's
        `worker_exit`, or a command's `finally`. An exception that ends the waiting leaves all of them
        refusing tasks.

        Args:
            wait, cancel_futures, cancel_queries: as in each executor's `shutdown`.
            timeout: for how many seconds to wait at most, for all of them together. What has not begun
                by then is cancelled and logged by name, as by each executor's `shutdown`. Default None:
                as long as it takes.

        Raises:
            TypeError, ValueError, RuntimeError: as each executor's `shutdown`.
        """
        seconds = check_timeout(timeout, wait=wait, cancel_queries=cancel_queries)
        deadline = None if seconds is None else Clock.monotonic() + seconds
        self._is_shut_down = True
        left = self._made_now()
        try:
            while left:
                seconds = None if deadline is None else max(0.0, deadline - Clock.monotonic())
                left[0].shutdown(
                    wait,
                    cancel_futures=cancel_futures,
                    timeout=seconds,
                    cancel_queries=cancel_queries,
                )
                del left[0]
        finally:
            for executor in left:  # the waiting was interrupted, or refused
                executor.shutdown(wait=False, cancel_futures=cancel_futures)

    def _made_now(self) -> list[Executor]:
        return list(self._made.values())

    def _open_again(self) -> None:
        """Make each anew if they were shut down: a server starts in this process."""
        if self._is_shut_down:
            self._drop()
            self._is_shut_down = False

    def _forget(self, *, setting: str, **kwargs: Any) -> None:
        if setting == conf.EXECUTORS:
            self._drop()
            self._is_shut_down = False

    def _drop(self) -> None:
        self._made = {}


def named() -> dict[str, conf.Named]:
    """Return what the setting names, and the default one.

    Raises:
        ImproperlyConfigured: it is wrong.
    """
    found: dict[str, conf.Named] = conf.read(conf.EXECUTORS)
    return {DEFAULT: conf.Named(backend=ThreadPoolExecutor, options={})} | found


def make(alias: str) -> Executor:
    """Make the executor that is named so. It has no threads before its first task.

    Raises:
        ImproperlyConfigured: EXECUTORS is wrong, or has no such alias.
    """
    entries = named()
    if alias not in entries:
        known = ", ".join(map(repr, entries))
        raise ImproperlyConfigured(f"EXECUTORS has no alias {alias!r}: it has {known}")
    entry = entries[alias]
    backend = entry.backend
    if not (isinstance(backend, type) and issubclass(backend, Executor)):
        raise ImproperlyConfigured(
            f"EXECUTORS[{alias!r}]['BACKEND'] must name an executor of django_executors, or a subclass "
            f"of one, not {backend!r}"
        )
    takes = inspect.signature(backend).parameters
    options = {"thread_name_prefix": alias} if "thread_name_prefix" in takes else {}
    try:
        executor = backend(**{**options, **entry.options})
    except Exception as error:
        said = f"{type(error).__name__}: {error}".removesuffix(".")
        raise ImproperlyConfigured(
            f"EXECUTORS[{alias!r}]['OPTIONS']: {said}. {backend.__qualname__} takes "
            f"{', '.join(map(repr, takes)) or 'no options'}"
        ) from error
    executor._be_called(alias)
    return executor


def most_workers() -> dict[str, int]:
    """Return how many threads each executor that EXECUTORS names has at most.

    Raises:
        ImproperlyConfigured: EXECUTORS is wrong.
    """
    return {alias: make(alias)._most_workers for alias in conf.read(conf.EXECUTORS)}


def most_processes() -> int:
    """Return how many worker processes they have at most, all together.

    Raises:
        ImproperlyConfigured: EXECUTORS is wrong.
    """
    return sum(make(alias)._most_processes for alias in conf.read(conf.EXECUTORS))


#: Those of this process.
executors = Executors()
# Before modules are taken apart: the standard process pool's own end needs some.
atexit.register(executors._drop)

setting_changed.connect(executors._forget, dispatch_uid="django_executors.registry")
