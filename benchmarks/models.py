"""Two small tables: one to read, one to write."""

from django.core.management.color import no_style
from django.db import connection, models

ROWS = 1_000


def name_of(number: int) -> str:
    """What the row with this number says."""
    return f"item {number * 7919 % 10_007}"


def item(number: int) -> int:
    """The primary key that the task with this number reads."""
    return number % ROWS + 1


class Item(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "benchmarks"


class Note(models.Model):
    number = models.IntegerField()

    class Meta:
        app_label = "benchmarks"


def make_tables() -> None:
    """Make the tables in the current database, unless it has them."""
    there = connection.introspection.table_names()
    if Item._meta.db_table in there:
        return
    with connection.schema_editor() as editor:
        editor.create_model(Item)
        editor.create_model(Note)
    Item.objects.bulk_create(Item(pk=number, name=name_of(number)) for number in range(1, ROWS + 1))


def empty_notes() -> None:
    """Truncate, so that each run begins with the same table."""
    connection.ops.execute_sql_flush(connection.ops.sql_flush(no_style(), [Note._meta.db_table]))
