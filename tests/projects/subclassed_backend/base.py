"""A backend of a project's own: a subclass of Django's, of which nothing more is known."""

from __future__ import annotations

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    pass
