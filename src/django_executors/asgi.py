"""Django's ASGI application, with `executors["default"]` behind `asyncio.to_thread`.

An event loop's default executor must be a standard thread pool, and `asyncio.run` shuts it down when
its loop ends. So each loop gets a small one of its own, without threads, which hands over what it is
given. The named executor goes on, for other loops, threads and tests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from django.core import asgi
from django.core.exceptions import ImproperlyConfigured

from .arguments import check_seconds
from .base import shut_all_down
from .clock import Clock
from .connections.scope import connection_scope
from .registry import DEFAULT, executors
from .thread import ThreadPoolExecutor

P = ParamSpec("P")
R = TypeVar("R")

#: The event loops that have one.
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


class _LoopsExecutor(concurrent.futures.ThreadPoolExecutor):
    """The default executor of one event loop: it hands each call to `executors["default"]`."""

    def __init__(self) -> None:
        super().__init__(1)  # and it starts none
        self._futures: weakref.WeakSet[concurrent.futures.Future[Any]] = weakref.WeakSet()

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        future = _default().submit(fn, *args, **kwargs)
        self._futures.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for what this loop has submitted, as `asyncio.run` expects."""
        if wait:
            concurrent.futures.wait(list(self._futures))


def _default() -> ThreadPoolExecutor:
    # Each time: `override_settings` replaces it.
    executor = executors[DEFAULT]
    if not isinstance(executor, ThreadPoolExecutor):
        raise ImproperlyConfigured(
            f"EXECUTORS[{DEFAULT!r}]['BACKEND'] must be a thread pool to be an event loop's default "
            f"executor, not {type(executor).__qualname__}: give that one another alias"
        )
    return executor


def get_asgi_application(*, shutdown_timeout: float = 20.0) -> ASGI3Application:
    """Return Django's ASGI application, whose event loop uses `executors["default"]`.

    It takes the place of `django.core.asgi.get_asgi_application`. `asyncio.to_thread`,
    `loop.run_in_executor(None, …)` and `sync_to_async(…, thread_sensitive=False)` run in the workers of
    `executors["default"]`, which close their connections, from the start of the server's lifespan on; or
    from the first request on, if the server has no lifespan.

    When the lifespan ends, every executor of the process is shut down, the named ones first, as by their
    `shutdown(timeout=…, cancel_queries=True)`: what has not run by the deadline is cancelled and logged
    by name, and queries that still run are cancelled on the server. A later
    lifespan in the same process begins with new named executors.

    Args:
        shutdown_timeout: seconds for all executors together. Choose it below the time that your process
            manager waits between SIGTERM and SIGKILL, less that of your longest request.

    Raises:
        ImproperlyConfigured: `executors["default"]` is not a thread pool, or EXECUTORS is wrong.
        TypeError, ValueError: shutdown_timeout is not a number of seconds.
    """
    seconds = check_seconds("shutdown_timeout", shutdown_timeout)
    django_application = asgi.get_asgi_application()
    _default()  # or only a request would say that there is none

    async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        loop = asyncio.get_running_loop()
        if loop not in _loops:
            _loops.add(loop)
            loop.set_default_executor(_LoopsExecutor())
        if scope["type"] == "lifespan":  # which Django's own refuses
            await _live(seconds, receive, send)
        else:
            await django_application(scope, receive, send)  # type: ignore[arg-type]

    return application


async def _live(seconds: float, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    await receive()
    executors._open_again()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    # In a thread that is not an executor's: it waits for all of them.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, _end, seconds)
    await send({"type": "lifespan.shutdown.complete"})


@connection_scope  # callbacks of what is cancelled may use the ORM
def _end(seconds: float) -> None:
    deadline = Clock.monotonic() + seconds
    named = executors._made_now()
    executors.shutdown(timeout=seconds, cancel_queries=True)
    shut_all_down(deadline, but=named)
