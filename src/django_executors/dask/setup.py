"""How a worker of a cluster is set up for Django, once."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import threading
from typing import Any

from distributed import WorkerPlugin
from distributed.worker import Worker

from django_executors.exceptions import ExecutorError
from django_executors.lifecycle import databases
from django_executors.lifecycle.scope import connection_scope

#: For how many seconds a task waits for its worker, which may have joined just now, to be set up.
_PATIENCE = 30.0


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
    """Sets Django up in each worker of a cluster, those that join later too."""

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
        # Not here, in the worker's event loop: an AppConfig may use the ORM.
        await asyncio.to_thread(self._set_up)

    def _set_up(self) -> None:
        error = None
        try:
            with connection_scope():
                databases.set_up_once(self._module, lambda: pickle.loads(self._databases))
        except BaseException as raised:
            error = raised
            raise
        finally:
            with _changed:
                _ends[self.name] = error
                _changed.notify_all()


#: By the plugin's name: what its setup has raised in this process, once it has ended.
_ends: dict[str, BaseException | None] = {}
_changed = threading.Condition()


def wait_for(name: str) -> None:
    """Return when this process is set up so.

    Raises:
        ExecutorError: it is not.
    """
    if name in _ends and _ends[name] is None:
        return
    with _changed:
        _changed.wait_for(lambda: name in _ends, _PATIENCE)
    error: Any = _ends.get(name, TimeoutError("it has never begun, or goes on"))
    if error is not None:
        raise ExecutorError(f"this worker could not be set up for Django: {error}") from error
