"""Where the rows are read and written when there is a replica."""

from typing import Any

from django.db.models import Model


class ReadFromReplica:
    """Read from the alias `replica`, write to `default`."""

    def db_for_read(self, model: type[Model], **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: type[Model], **hints: Any) -> str:
        return "default"
