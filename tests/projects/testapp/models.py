from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """A row, so that tasks have something to count and to write."""

    name = models.CharField(max_length=100)


class Article(models.Model):
    """A row of a large table, with a column that came later."""

    title = models.CharField(max_length=100)
    slug = models.SlugField(max_length=120, null=True, db_index=False)
