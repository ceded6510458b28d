"""A Django project of one database, which can be changed for another."""

import gc
from typing import Any

import django
from django.conf import settings
from django.db import connection, connections
from django.db.utils import ConnectionHandler


def set_up() -> None:
    """Set Django up without a database. `django_executors` is no installed app, as in the demo:

    with it every thread closes its connections when it ends, those of the leaking pool too.
    """
    settings.configure(DATABASES={"default": {}}, INSTALLED_APPS=[], USE_TZ=True)
    django.setup()


def use(database: dict[str, Any], *, conn_max_age: int = 0) -> None:
    """Make this the default database of all threads.

    One alias only: what closes the connections of all aliases would be slower with more of them.
    """
    let_go()
    del connections["default"]
    handler = ConnectionHandler({"default": database | {"CONN_MAX_AGE": conn_max_age}})
    connections.settings["default"] = handler.settings["default"]


def let_go() -> None:
    """Close all connections, those too that ended threads have left to the garbage collector."""
    gc.collect()
    connections.close_all()
    if connection.settings_dict.get("OPTIONS", {}).get("pool"):
        connection.close_pool()
