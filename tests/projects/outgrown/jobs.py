"""Tasks that know nothing of the backend that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.projects.testapp.models import Entry

if TYPE_CHECKING:
    from django.tasks import task
else:
    try:
        from django.tasks import task
    except ImportError:
        from django_tasks import task


@task
def add_entry(name: str) -> int:
    Entry.objects.create(name=name)
    return Entry.objects.filter(name=name).count()


@task
async def count_entries() -> int:
    return await Entry.objects.acount()


@task
def fail(word: str) -> None:
    raise LookupError(word)
