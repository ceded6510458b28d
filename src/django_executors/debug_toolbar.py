"""The SQL panel of django-debug-toolbar, with the queries of tasks. In the settings:

from debug_toolbar.settings import PANELS_DEFAULTS

DEBUG_TOOLBAR_PANELS = [
    panel.replace("debug_toolbar.panels.sql.", "django_executors.debug_toolbar.")
    for panel in PANELS_DEFAULTS
]
"""

from __future__ import annotations

import threading
from typing import Any

from debug_toolbar.panels import sql
from debug_toolbar.panels.sql.tracking import wrap_cursor
from django.db.backends.base.base import BaseDatabaseWrapper

from . import context


class SQLPanel(sql.SQLPanel):
    """Shows the queries of the request, and of the tasks in threads that it has submitted.

    A query has the stack of its task. Those of tasks that go on after the response are not shown.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self.is_over = False

    def enable_instrumentation(self) -> None:
        super().enable_instrumentation()  # type: ignore[no-untyped-call]
        context.begin_watching(self)

    def disable_instrumentation(self) -> None:
        super().disable_instrumentation()  # type: ignore[no-untyped-call]
        context.end_watching(self)
        self.is_over = True

    def record(self, **kwargs: Any) -> None:
        with self._lock:
            super().record(**kwargs)  # type: ignore[no-untyped-call]

    # Private names of the toolbar's: `wrap_cursor`, and the attribute in which it looks for a panel.

    def watch(self, wrapper: BaseDatabaseWrapper) -> None:
        """Called in the thread whose wrapper it is."""
        wrap_cursor(wrapper)
        vars(wrapper)["_djdt_logger"] = self

    def unwatch(self, wrapper: BaseDatabaseWrapper) -> None:
        vars(wrapper)["_djdt_logger"] = None
