"""A gRPC server whose methods use the ORM. Without `protoc`: its messages are bytes."""

import grpc

# server: begin
from django_executors import ThreadPoolExecutor  # instead of concurrent.futures'
from tests.projects.testapp.models import Entry


def make_server():
    server = grpc.server(ThreadPoolExecutor(max_workers=10))
    server.add_generic_rpc_handlers([entries])
    return server


# end
def count(request, context):
    if request == b"bad":
        raise ValueError(Entry.objects.count())
    return b"%d" % Entry.objects.filter(name__startswith=request.decode()).count()


def names(request, context):
    for entry in Entry.objects.order_by("name").iterator(chunk_size=1):
        yield entry.name.encode()


entries = grpc.method_handlers_generic_handler(
    "Entries",
    {
        "Count": grpc.unary_unary_rpc_method_handler(count),
        "Names": grpc.unary_stream_rpc_method_handler(names),
    },
)
