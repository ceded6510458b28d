"""The code of `docs/frameworks.md`, on the frameworks themselves.

Each is seen to leave a connection without this package's line, and none with it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import grpc
import httpx
import nbclient
import nbformat
import pytest
from apscheduler import events
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.util import obj_to_ref, ref_to_obj
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.test import AsyncClient, override_settings
from fastapi import BackgroundTasks, Depends, FastAPI
from joblib import Parallel, delayed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from strawberry.dataloader import DataLoader

from django_executors import ThreadPoolExecutor, all_connections, connection_scope
from tests.projects.frameworks import with_apscheduler, with_grpc, with_joblib, with_strawberry
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.kept import backend
from tests.support.leaking import leaks
from tests.support.observers import PostgresObserver
from tests.support.serving import ask_all, uvicorn
from tests.support.subprocesses import environment, run_python
from tests.support.waiting import wait_until

FASTAPI = "tests.projects.frameworks.with_fastapi"
CELLS = Path(__file__).parents[1] / "projects" / "frameworks" / "with_jupyter.py"

#: A decorator that adds the line of the page, and one that does not.
with_and_without = pytest.mark.parametrize(
    "decorate", [connection_scope, lambda fn: fn], ids=["with", "without"]
)


@pytest.fixture(autouse=True)
def entries() -> None:
    """Three rows, and no connection."""
    Entry.objects.bulk_create(Entry(name=name) for name in ("apple", "apricot", "banana"))
    connection.close()


@pytest.fixture
def standard_pool() -> Iterator[Any]:
    """The standard class, for the place of ours. What it has started ends with the test."""
    with contextlib.ExitStack() as pools:
        yield lambda max_workers: pools.enter_context(concurrent.futures.ThreadPoolExecutor(max_workers))


def assert_left(number: int, postgres: PostgresObserver) -> None:
    """So many connections are open, on the server too; it has had the time to notice who is gone."""
    assert wait_until(lambda: len(all_connections()), lambda found: found == number) == number
    assert len(postgres.settled(number)) == number


def number_left(decorate: Any) -> int:
    """Return how many connections one function leaves."""
    return 0 if decorate is connection_scope else 1


# FastAPI and Starlette


def get(app: Any, *paths: str) -> list[Any]:
    """Ask an application for the paths, one after another, in an event loop that ends afterwards."""

    async def main() -> list[Any]:
        async with client_of(app) as client:
            return [(await client.get(path)).json() for path in paths]

    return asyncio.run(main())


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("conn_max_age", ["0", "600"])
def test_fastapi_under_uvicorn(conn_max_age: str, postgres: PostgresObserver, tmp_path: Path) -> None:
    """8 clients at once leave no connection with the line, and one or more without it."""
    log = tmp_path / "log"
    with uvicorn(log, FASTAPI, TEST_CONN_MAX_AGE=conn_max_age, TEST_WITHOUT_APP="") as port:
        for path, answer in {"count": "2", "count_async": "2", "is_known": "false"}.items():
            answers = ask_all(port, [f"/{path}/ap"] * 24, clients=8)
            assert set(answers) == {(200, answer)}, log.read_text()
            assert not postgres.left()
        assert ask_all(port, ["/leak/ap"] * 2, clients=1) == [(200, "2")] * 2
        assert postgres.backends()
    assert log.read_text() == ""


def test_fastapi_background_task(postgres: PostgresObserver) -> None:
    """A task that runs after the answer has a scope of its own."""
    app, found = FastAPI(), []

    @connection_scope
    def log() -> None:
        found.append((Entry.objects.count(), threading.current_thread() is threading.main_thread()))

    @app.get("/")
    async def answer(tasks: BackgroundTasks) -> int:
        tasks.add_task(log)
        return 1

    assert get(app, "/") == [1]
    assert found == [(3, False)]
    assert not postgres.left()


@leaks
@pytest.mark.parametrize(("how", "left"), [("list", 0), ("queryset", 1), ("stream", 1)])
def test_fastapi_response_is_loaded(how: str, left: int, postgres: PostgresObserver) -> None:
    """FastAPI reads a queryset, and a stream's generator, after the scope of the endpoint has ended."""
    app = FastAPI()

    def stream(found: Any) -> Iterator[str]:
        yield json.dumps(list(found))

    @app.get("/", response_model=None if how == "stream" else list[str])
    @connection_scope
    def names() -> Any:
        found = Entry.objects.order_by("name").values_list("name", flat=True)
        if how == "stream":
            return StreamingResponse(stream(found))
        return list(found) if how == "list" else found

    assert get(app, "/") == [["apple", "apricot", "banana"]]
    assert_left(left, postgres)


@leaks
def test_fastapi_dependency_that_yields(gate: Gate, postgres: PostgresObserver) -> None:
    """Its second half runs in another thread where the first one's is busy, and the scope refuses."""
    app, threads = FastAPI(), []

    def scope() -> Iterator[None]:
        threads.append(threading.get_ident())
        try:
            with connection_scope():
                Entry.objects.count()
                yield
        finally:
            threads.append(threading.get_ident())

    @app.get("/first")
    async def first(_: None = Depends(scope)) -> None:
        is_inside.set()
        await go_on.wait()

    @app.get("/second")
    def second() -> None:
        threads.append(threading.get_ident())
        gate()

    async def main() -> None:
        async with client_of(app) as client:
            answer = asyncio.create_task(client.get("/first"))
            await is_inside.wait()
            busy = asyncio.create_task(client.get("/second"))
            await asyncio.to_thread(gate.wait_for)
            go_on.set()
            with pytest.raises(RuntimeError, match="left where it was not entered"):
                await answer
            assert_left(1, postgres)
            gate.open()
            await busy

    is_inside, go_on = asyncio.Event(), asyncio.Event()
    asyncio.run(main())
    began, also_there, ended = threads
    assert began == also_there != ended


def test_fastapi_two_scopes_in_a_request() -> None:
    """The endpoint and its dependency connect once each."""
    app = FastAPI()

    @app.get("/")
    @connection_scope
    def pids(of_dependency: Annotated[int, Depends(connection_scope(backend))]) -> list[int]:
        return [of_dependency, backend()]

    ((first, second),) = get(app, "/")
    assert first != second


def test_fastapi_keeps_connections_in_a_pool() -> None:
    """With `conn_max_idle`, requests that come one at a time share a connection."""
    app = FastAPI()
    with ThreadPoolExecutor(1, conn_max_idle=60.0) as pool:

        @app.get("/")
        async def pid() -> int:
            return await pool.submit(backend)

        first, second = get(app, "/", "/")
    assert first == second


@leaks
def test_fastapi_async_orm(postgres: PostgresObserver) -> None:
    """The async ORM in an endpoint leaves a connection in asgiref's one thread."""
    app = FastAPI()

    @app.get("/")
    async def count() -> int:
        return await Entry.objects.acount()

    async def main() -> None:
        async with client_of(app) as client:
            await asyncio.gather(*(client.get("/") for _ in range(4)))
        assert_left(1, postgres)
        await sync_to_async(connections.close_all)()

    asyncio.run(main())


@leaks
@with_and_without
def test_starlette(decorate: Any, postgres: PostgresObserver) -> None:
    """The same decorator is for a plain function as an endpoint."""

    @decorate
    def count(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(Entry.objects.count()))

    async def main() -> None:
        async with client_of(Starlette(routes=[Route("/", count)])) as client:
            assert (await client.get("/")).text == "3"
            assert_left(number_left(decorate), postgres)

    asyncio.run(main())


# APScheduler


@contextlib.contextmanager
def running(scheduler: BaseScheduler, number: int) -> Iterator[list[Any]]:
    """Have all jobs of a scheduler run at once; give their events when they have."""
    seen: queue.Queue[Any] = queue.Queue()
    scheduler.add_listener(seen.put, events.EVENT_JOB_EXECUTED | events.EVENT_JOB_ERROR)
    for job in scheduler.get_jobs():
        job.modify(next_run_time=datetime.now(UTC), misfire_grace_time=None)
    scheduler.start()
    try:
        yield [seen.get(timeout=20) for _ in range(number)]
    finally:
        scheduler.shutdown()


def test_apscheduler_decorated_job(postgres: PostgresObserver) -> None:
    """When the scheduler says that the job is done, its connection is closed."""
    Entry.objects.create(name="old")
    connection.close()
    with running(with_apscheduler.decorated_jobs(), 1) as (event,):
        assert event.exception is None
        assert_left(0, postgres)
    assert Entry.objects.count() == 3


def test_apscheduler_stored_job() -> None:
    """A job store that keeps the name of a decorated function finds the decorated one."""
    job = with_apscheduler.delete_old_entries
    assert ref_to_obj(obj_to_ref(job)) is job


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@leaks
def test_apscheduler_on_our_executor(kind: str, postgres: PostgresObserver) -> None:
    """Jobs without a decorator leave no connection in our threads, and one each in its own."""
    make = {"ours": with_apscheduler.make_scheduler, "theirs": BackgroundScheduler}[kind]
    scheduler, barrier = make(), threading.Barrier(2)

    def job(names: list[str]) -> int:
        names.append(threading.current_thread().name)
        barrier.wait(10)
        return Entry.objects.count()

    names: list[str] = []
    for _ in range(2):
        scheduler.add_job(job, "interval", [names], hours=1)
    with running(scheduler, 2) as done:
        assert [event.retval for event in done] == [3, 3]
        assert len(set(names)) == 2
        assert_left({"ours": 0, "theirs": 2}[kind], postgres)


@leaks
@with_and_without
def test_apscheduler_asyncio(decorate: Any, postgres: PostgresObserver) -> None:
    """`AsyncIOScheduler` runs a plain function in the loop's default executor."""

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        scheduler = AsyncIOScheduler()
        scheduler.add_listener(
            lambda event: loop.call_soon_threadsafe(done.set), events.EVENT_JOB_EXECUTED
        )
        scheduler.add_job(decorate(count_and_note), misfire_grace_time=None)
        scheduler.start()
        await asyncio.wait_for(done.wait(), 20)
        scheduler.shutdown()
        assert_left(number_left(decorate), postgres)

    names: list[str] = []

    def count_and_note() -> None:
        names.append(threading.current_thread().name)
        Entry.objects.count()

    asyncio.run(main())
    assert names[0].startswith("asyncio_")


# gRPC


@contextlib.contextmanager
def served() -> Iterator[grpc.Channel]:
    server = with_grpc.make_server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        assert server.stop(None).wait(20)


def test_grpc(postgres: PostgresObserver) -> None:
    """No call leaves a connection: answered, failed, streamed or cancelled."""
    with served() as channel:
        count, names = channel.unary_unary("/Entries/Count"), channel.unary_stream("/Entries/Names")
        assert [count(b"ap", timeout=20) for _ in range(4)] == [b"2"] * 4
        assert_left(0, postgres)
        with pytest.raises(grpc.RpcError, match="Exception calling application: 3"):
            count(b"bad", timeout=20)
        assert_left(0, postgres)
        assert list(names(b"", timeout=20)) == [b"apple", b"apricot", b"banana"]
        assert_left(0, postgres)
        stream = names(b"", timeout=20)
        assert next(stream) == b"apple"
        stream.cancel()
        assert_left(0, postgres)


@leaks
def test_grpc_on_the_standard_pool(
    standard_pool: Any, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    monkeypatch.setattr(with_grpc, "ThreadPoolExecutor", standard_pool)
    with served() as channel:
        assert channel.unary_unary("/Entries/Count")(b"ap", timeout=20) == b"2"
        assert_left(1, postgres)


# Strawberry


def ask_graphql(query: str) -> Any:
    async def main() -> Any:
        answer = await AsyncClient().post("/graphql", {"query": query}, content_type="application/json")
        return answer.json()

    with override_settings(ROOT_URLCONF=with_strawberry.__name__):
        return asyncio.run(main())


def ask_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for three entries, one of which there is not, and see that they are loaded in one batch."""
    load, batches = with_strawberry.entries_by_pk, []
    apple, banana = (Entry.objects.get(name=name).pk for name in ("apple", "banana"))
    connection.close()

    def noted(pks: list[int]) -> list[Entry | None]:
        batches.append(pks)
        return load(pks)

    monkeypatch.setattr(with_strawberry, "entries_by_pk", noted)
    asked = {"a": apple, "b": banana, "c": 0}
    query = " ".join(f"{alias}: entry(pk: {pk}) {{ name }}" for alias, pk in asked.items())
    found = {"a": {"name": "apple"}, "b": {"name": "banana"}, "c": None}
    assert ask_graphql(f"{{ {query} }}") == {"data": found}
    assert batches == [[apple, banana, 0]]


def test_strawberry(monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver) -> None:
    """One batch, in one worker, and no connection."""
    ask_for_three(monkeypatch)
    assert_left(0, postgres)


@leaks
def test_strawberry_on_the_standard_pool(
    standard_pool: Any, monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    pool = standard_pool(8)
    awaitable = SimpleNamespace(submit=lambda fn, *args: asyncio.wrap_future(pool.submit(fn, *args)))
    monkeypatch.setattr(with_strawberry, "pool", awaitable)
    ask_for_three(monkeypatch)
    assert_left(1, postgres)


def test_strawberry_two_loaders_at_once() -> None:
    """The batches of two loaders run at the same time."""
    barrier = threading.Barrier(2)

    def batch(keys: list[int]) -> list[int]:
        barrier.wait(10)
        return [key + Entry.objects.count() for key in keys]

    async def load(keys: list[int]) -> list[int]:
        return await with_strawberry.pool.submit(batch, keys)

    async def main() -> list[int]:
        return await asyncio.gather(DataLoader(load).load(1), DataLoader(load).load(2))

    assert asyncio.run(main()) == [4, 5]


# Jupyter


class Notebook:
    """A kernel of Jupyter that runs cells."""

    def __init__(self, client: nbclient.NotebookClient) -> None:
        self._client = client

    def run(self, code: str) -> Any:
        """Run a cell, and return what it shows."""
        cells = self._client.nb.cells
        cells.append(nbformat.v4.new_code_cell(code))
        cell = self._client.execute_cell(cells[-1], len(cells) - 1)
        return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    """A kernel with no garbage collector."""
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=60, kernel_name="python3")
    with client.setup_kernel(env=environment("tests.settings")):
        notebook = Notebook(client)
        notebook.run("import gc; gc.disable()")
        yield notebook


def test_jupyter(notebook: Notebook, postgres: PostgresObserver) -> None:
    """After each of the page's cells the kernel has no connection."""
    _, *cells = CELLS.read_text().split("# %%")
    for cell in cells:
        notebook.run(f"# {cell}")
        assert not postgres.left()
    shown = notebook.run("print(sorted(names), counts['apple'], total)")
    assert shown == "['apple', 'apricot', 'banana'] 1 3\n"


def test_jupyter_cell_without_a_scope(notebook: Notebook, postgres: PostgresObserver) -> None:
    """Its connection is open for as long as the kernel lives; without the variable, it is refused."""
    count = "from tests.projects.testapp.models import Entry; print(Entry.objects.count())"
    notebook.run("import os, django; django.setup()")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="SynchronousOnlyOperation"):
        notebook.run(count)
    assert not postgres.left()
    notebook.run("os.environ['DJANGO_ALLOW_ASYNC_UNSAFE'] = 'true'")
    assert notebook.run(count) == "3\n"
    assert len(postgres.backends()) == 1


def test_jupyter_pool_that_stays(notebook: Notebook, postgres: PostgresObserver) -> None:
    """A pool that outlives its cell holds threads, and no connection. Tasks need no variable."""
    notebook.run("import django, threading; django.setup(); before = threading.active_count()")
    notebook.run("from django_executors import ThreadPoolExecutor; pool = ThreadPoolExecutor(2)")
    notebook.run("from tests.projects.testapp.models import Entry")
    assert notebook.run("print(pool.submit(Entry.objects.count).result(10))") == "3\n"
    assert not postgres.left()
    assert notebook.run("print(threading.active_count() - before)") == "1\n"
    assert notebook.run("pool.shutdown(); print(threading.active_count() - before)") == "0\n"


# joblib


PREFIXES = ["ap", "b", "c", "a"]


def test_joblib_threads(postgres: PostgresObserver) -> None:
    """joblib's threads leave no connection."""
    assert with_joblib.count_all(PREFIXES) == [2, 1, 0, 2]
    assert_left(0, postgres)


@leaks
def test_joblib_threads_without_a_scope(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresObserver
) -> None:
    """The threads have ended, and their connections are still open."""
    before, barrier = set(threading.enumerate()), threading.Barrier(4)

    def in_four_threads(prefix: str) -> int:
        barrier.wait(10)
        return Entry.objects.filter(name__startswith=prefix).count()

    monkeypatch.setattr(with_joblib, "count", in_four_threads)
    assert with_joblib.count_all(PREFIXES) == [2, 1, 0, 2]
    assert wait_until(lambda: set(threading.enumerate()) <= before)
    assert_left(4, postgres)


def test_joblib_in_the_callers_thread() -> None:
    """With one job, joblib calls the function itself; the caller's connection stays."""
    connection.ensure_connection()
    before = backend()
    assert Parallel(n_jobs=1)([delayed(with_joblib.count)("ap")]) == [2]
    assert backend() == before


LOKY = """
import os
import django
django.setup()
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from tests.projects.frameworks.with_joblib import count, count_all_in_processes
from tests.support.observers import PostgresObserver

def undecorated(**options):
    parallel = Parallel(n_jobs=2, backend="loky", **options)
    return parallel(delayed(count.__wrapped__)(prefix) for prefix in ("ap", "b"))

postgres = PostgresObserver(os.environ["TEST_POSTGRES_URL"])
try:
    SHOW
finally:
    get_reusable_executor().shutdown(kill_workers=True)
"""


@pytest.mark.parametrize(
    ("show", "shown"),
    [
        ('print(count_all_in_processes(["ap", "b"]), len(postgres.left()))', "[2, 1] 0\n"),
        ("print(undecorated(initializer=django.setup), bool(postgres.backends()))", "[2, 1] True\n"),
        ("undecorated()", "BrokenProcessPool"),
    ],
    ids=["with", "without", "without setup"],
)
def test_joblib_processes(show: str, shown: str) -> None:
    """Its processes live on, with their connections; without `django.setup` they cannot load a task."""
    done = run_python(
        LOKY.replace("SHOW", show),
        settings=None,
        warnings="ignore",
        DJANGO_SETTINGS_MODULE="tests.settings",
    )
    assert shown in (done.stdout or done.stderr), done.stderr
