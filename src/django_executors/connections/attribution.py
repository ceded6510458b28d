"""How a worker's connection is called on the server: EXECUTORS_APPLICATION_NAME."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_executors import conf

from .ledger import Holder
from .wrapper import is_pooled

#: PostgreSQL cuts a longer one, with a notice.
_MOST_BYTES = 63


@contextlib.contextmanager
def named(wrapper: BaseDatabaseWrapper, holder: Holder) -> Iterator[None]:
    """Have the connection that this wrapper opens in this block named after its worker.

    libpq takes it where neither `OPTIONS`, a service nor PGAPPNAME has another one, and sends it as it
    connects. A reset leaves it, as all that a connection begins with. Connections of Django's own pool
    are everybody's, and have none.
    """
    executor, own = holder.worker.executor, vars(wrapper)
    if (
        executor is None
        or (template := conf.current().application_name) is None
        or wrapper.vendor != "postgresql"
        or is_pooled(wrapper)
        or "get_connection_params" in own
    ):
        yield
        return
    project = (conf.settings_module() or "").partition(".")[0]
    name = template.format(project=project, executor=executor, pid=os.getpid())
    # libpq's strings end at a NUL.
    cut = name.replace("\0", "").encode()[:_MOST_BYTES].decode(errors="ignore")
    of_class: Any = type(wrapper)
    # An attribute of the instance: its class stays Django's.
    own["get_connection_params"] = lambda: {
        "fallback_application_name": cut,
        **of_class.get_connection_params(wrapper),
    }
    try:
        yield
    finally:
        own.pop("get_connection_params", None)
