"""A GraphQL schema of Strawberry with a data loader, and its view under ASGI."""

import strawberry
from django.urls import path
from strawberry.dataloader import DataLoader
from strawberry.django.views import AsyncGraphQLView

from django_executors import ThreadPoolExecutor
from tests.projects.testapp import models

# loader: begin
pool = ThreadPoolExecutor(8)


def entries_by_pk(pks):
    found = models.Entry.objects.in_bulk(pks)
    return [found.get(pk) for pk in pks]


async def load_entries(pks):
    return await pool.submit(entries_by_pk, pks)


class GraphQLView(AsyncGraphQLView):
    async def get_context(self, request, response):
        return {"entries": DataLoader(load_fn=load_entries)}


# schema: begin
@strawberry.type
class Entry:
    name: str


@strawberry.type
class Query:
    @strawberry.field
    async def entry(self, pk: int, info: strawberry.Info) -> Entry | None:
        return await info.context["entries"].load(pk)


# end
urlpatterns = [path("graphql", GraphQLView.as_view(schema=strawberry.Schema(Query)))]
