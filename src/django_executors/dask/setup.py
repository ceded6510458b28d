"""How a worker of a cluster is set up for Django, once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pickle
import threading
from typing import Any

from distributed import WorkerPlugin
from distributed.worker import Worker

from django_executors.connections.scope import connection_scope
from django_executors.exceptions import ExecutorError
from django_executors.execution import databases

#: For how many seconds a task waits for its worker, which may have joined just now, to have its plugin.
_PATIENCE = 30.0


logger = logging.getLogger(__name__)

#: A settings module, and the databases that are used with it.
Used = tuple[str | None, databases.Databases]


def used_here() -> Used | None:
    """Return those of the calling thread; None: Django has no settings here.

    Raises:
        ImproperlyConfigured: they are of no use to another process.
    """
    used = databases.effective()
    return None if used is None else (databases.settings_module(), used)


class DjangoPlugin(WorkerPlugin):
    """Sets Django up in each worker of a cluster, those that join later too.

    The first task does it that needs it: a scheduler keeps the plugins of all its clients, those of
    test runs too.
    """

    # One of this name is there already: the scheduler has no need of another one.
    idempotent = True

    def __init__(self, module: str | None, used: databases.Databases) -> None:
        self._module = module
        # Unpickled when the settings module is known: what DATABASES has may be of the user's own.
        try:
            self._databases = pickle.dumps(databases.without_secrets(used))
        except Exception as error:
            raise pickle.PicklingError(f"what DATABASES has cannot be pickled: {error}") from error
        digest = hashlib.sha256(f"{module}\n".encode() + self._databases)
        self.name = f"django_executors-{digest.hexdigest()}"

    async def setup(self, worker: Worker) -> None:
        """Only make it known: those of clients that are long gone come here too."""
        with _changed:
            _known[self.name] = self
            _changed.notify_all()

    def set_up(self) -> None:
        with connection_scope():
            databases.set_up_once(self._module, lambda: pickle.loads(self._databases))


#: By name, what has come to this process, and what its set-up has raised, once it has ended.
_known: dict[str, DjangoPlugin] = {}
_ends: dict[str, BaseException | None] = {}
_changed = threading.Condition()
_lock = threading.Lock()


def ensure(name: str, worker: str) -> None:
    """Return when this process, that worker, is set up so.

    Raises:
        ExecutorError: it cannot be.
    """
    if name in _ends and _ends[name] is None:
        return
    with _changed:
        if not _changed.wait_for(lambda: name in _known, _PATIENCE):
            raise ExecutorError(f"the worker {worker} was not told how to set Django up: start it again")
    with _lock:
        if name not in _ends:
            _ends[name] = _end_of(name)
    if (error := _ends[name]) is not None:
        raise ExecutorError(f"the worker {worker} could not be set up for Django: {error}") from error


def _end_of(name: str) -> BaseException | None:
    try:
        _known[name].set_up()
    except BaseException as error:  # noqa: BLE001 - of whatever class
        return error
    return None


async def ensure_now(name: str, dask_worker: Worker) -> None:
    """Called in each worker's event loop, where an AppConfig could not use the ORM."""
    await asyncio.to_thread(ensure, name, dask_worker.address)


def register(client: Any, used: Used, executor: str) -> str:
    """Have the workers of this client's cluster set up, now and as they join, and return the name of it.

    Raises:
        ExecutorError: there are workers, and none can be set up.
    """
    plugin = DjangoPlugin(*used)
    try:
        client.register_plugin(plugin)
        ends = client.run(ensure_now, plugin.name, on_error="return")
    except Exception as error:
        raise ExecutorError(
            f"the workers of {client.scheduler.address} cannot be set up for Django: "
            f"{type(error).__name__}: {error}. They need the project's code, django-executors[dask], "
            "and the same versions of Python and Dask as this process"
        ) from error
    refusals = [end for end in ends.values() if isinstance(end, ExecutorError)]
    if refusals and len(refusals) == len(ends):
        raise refusals[0]
    for refusal in refusals:
        logger.warning("executor=%s %s. Tasks that it takes fail", executor, refusal)
    return plugin.name
