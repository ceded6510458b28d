"""A backend on PostgreSQL's driver under a name of its own, as CockroachDB's is."""

from __future__ import annotations

from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    vendor = "cockroachdb"
