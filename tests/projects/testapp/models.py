from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """A row, so that tasks have something to count and to write."""

    name = models.CharField(max_length=100)


class Article(models.Model):
    """A row of a large table, with a column that came later."""

    title = models.CharField(max_length=100)
    slug = models.SlugField(max_length=120, null=True, db_index=False)


class Shelf(models.Model):
    """What other rows refer to."""

    name = models.CharField(max_length=100)


class BookQuerySet(models.QuerySet["Book"]):
    """One of a user's own."""

    def after(self, number: int) -> BookQuerySet:
        return self.filter(number__gt=number)


class Book(models.Model):
    """A row that refers to another one."""

    shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="books")
    number = models.IntegerField()

    objects = BookQuerySet.as_manager()
