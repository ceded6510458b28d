from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """A row, so that tasks have something to count and to write."""

    name = models.CharField(max_length=100)
