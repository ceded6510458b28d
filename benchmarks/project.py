"""A Django project of one database, which can be changed for another."""

import gc
import json
import os
from typing import Any

import django
from django.db import connection, connections
from django.db.utils import ConnectionHandler


def set_up() -> None:
    """Set Django up without a database."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    django.setup()


def use(database: dict[str, Any], *, conn_max_age: int = 0) -> None:
    """Make this the default database of all threads.

    One alias only: what closes the connections of all aliases would be slower with more of them.
    """
    let_go()
    del connections["default"]
    database = database | {"CONN_MAX_AGE": conn_max_age}
    handler = ConnectionHandler({"default": database})
    connections.settings["default"] = handler.settings["default"]
    os.environ["BENCHMARK_DATABASE"] = json.dumps(database, default=str)


def let_go() -> None:
    """Close all connections, those too that ended threads have left to the garbage collector."""
    gc.collect()
    connections.close_all()
    if connection.settings_dict.get("OPTIONS", {}).get("pool"):
        connection.close_pool()
