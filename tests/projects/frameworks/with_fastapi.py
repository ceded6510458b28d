"""A FastAPI application on Django's ORM, in a process without a garbage collector."""

import django

django.setup()

import gc  # noqa: E402
from typing import Annotated  # noqa: E402

from fastapi import Depends, FastAPI  # noqa: E402

from django_executors import ThreadPoolExecutor, connection_scope  # noqa: E402
from tests.projects.testapp.models import Entry  # noqa: E402

application = app = FastAPI()


# def: begin
@app.get("/count/{prefix}")
@connection_scope
def count(prefix: str) -> int:
    return Entry.objects.filter(name__startswith=prefix).count()


@connection_scope
def find_entry(name: str) -> Entry | None:
    return Entry.objects.filter(name=name).first()


@app.get("/is_known/{name}")
def is_known(entry: Annotated[Entry | None, Depends(find_entry)]) -> bool:
    return entry is not None


# async: begin
pool = ThreadPoolExecutor(8)


def count_entries(prefix: str) -> int:
    return Entry.objects.filter(name__startswith=prefix).count()


@app.get("/count_async/{prefix}")
async def count_async(prefix: str) -> int:
    return await pool.submit(count_entries, prefix)


# end
app.get("/leak/{prefix}")(count.__wrapped__)
gc.disable()
