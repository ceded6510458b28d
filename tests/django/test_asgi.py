"""`get_asgi_application`: which executor its event loops use, and what the end of a lifespan ends."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_executors import DeadlockError, ThreadPoolExecutor, base, executors
from django_executors.asgi import get_asgi_application
from tests.projects.testapp.models import Entry
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver

IMMEDIATE = {"default": {"BACKEND": "django_executors.ImmediateExecutor"}}


@pytest.fixture(autouse=True)
def made_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without executors, and leave none; those of other tests go on."""
    monkeypatch.setattr(base, "_executors", {})
    with override_settings(EXECUTORS={"default": {"OPTIONS": {"max_workers": 2}}}):
        yield
        executors.shutdown()


@asynccontextmanager
async def lifespan(application: Any) -> Any:
    """Have the application live as a server does."""
    server = ApplicationCommunicator(application, {"type": "lifespan"})
    await server.send_input({"type": "lifespan.startup"})
    assert await server.receive_output(20) == {"type": "lifespan.startup.complete"}
    yield
    await server.send_input({"type": "lifespan.shutdown"})
    assert await server.receive_output(20) == {"type": "lifespan.shutdown.complete"}
    await server.wait(20)


def thread_name() -> str:
    return threading.current_thread().name


async def get(application: Any) -> None:
    """Send a request; what it answers is Django's."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    client = ApplicationCommunicator(application, scope)
    await client.send_input({"type": "http.request"})
    assert (await client.receive_output(20))["status"] == 404
    await client.receive_output(20)
    await client.wait(20)


def test_a_lifespan() -> None:
    """From its start on the loop uses the named executor; at its end that refuses tasks."""
    application = get_asgi_application()

    async def main() -> None:
        async with lifespan(application):
            assert await asyncio.to_thread(thread_name) == "default_0"
        with pytest.raises(RuntimeError, match="after shutdown"):
            await asyncio.to_thread(thread_name)

    asyncio.run(main())


def test_a_server_without_a_lifespan(postgres: PostgresObserver) -> None:
    """From the first request on the loop uses the named executor, which outlives it."""
    application = get_asgi_application()

    async def main() -> int:
        await get(application)
        assert (await asyncio.to_thread(thread_name)).startswith("default_")
        return await asyncio.to_thread(Entry.objects.count)

    assert [asyncio.run(main()), asyncio.run(main())] == [0, 0]
    assert executors["default"].submit(abs, -1).result(20) == 1
    assert not postgres.left()


def test_what_the_site_sets_itself() -> None:
    """A default executor that the site sets later stays."""
    application = get_asgi_application()

    async def main() -> str:
        await get(application)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "ours"))
        await get(application)
        return await asyncio.to_thread(thread_name)

    assert asyncio.run(main()) == "ours_0"


def test_the_end_of_a_loop_waits(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.run` returns when what its loop gave to threads has ended, not what others submitted."""
    application, of_others, wait = get_asgi_application(), Gate(), concurrent.futures.wait

    def wait_for_what_ends_meanwhile(futures: Any) -> None:
        gate.open()
        wait(futures, 20)

    async def main() -> None:
        await get(application)
        asyncio.get_running_loop().run_in_executor(None, gate)
        gate.wait_for()

    monkeypatch.setattr(concurrent.futures, "wait", wait_for_what_ends_meanwhile)
    other = executors["default"].submit(of_others)
    of_others.wait_for()
    asyncio.run(main())
    assert len(gate.ended) == 1
    assert not other.done()
    of_others.open()


def test_replaced_by_override_settings() -> None:
    """A loop uses the executor that is named at that moment."""
    application = get_asgi_application()

    async def main() -> list[str]:
        found = []
        await get(application)
        with override_settings(EXECUTORS={"default": {"OPTIONS": {"thread_name_prefix": "inside"}}}):
            found.append(await asyncio.to_thread(thread_name))
        with override_settings(EXECUTORS=IMMEDIATE), pytest.raises(ImproperlyConfigured):
            await asyncio.to_thread(thread_name)
        found.append(await asyncio.to_thread(thread_name))
        return found

    assert asyncio.run(main()) == ["inside_0", "default_0"]


@pytest.mark.parametrize(
    "backend", ["django_executors.ProcessPoolExecutor", "django_executors.ImmediateExecutor"]
)
def test_not_a_thread_pool(backend: str) -> None:
    """A default executor that is no thread pool is refused where the application is made."""
    refused = pytest.raises(ImproperlyConfigured, match=r"thread pool .* not \w+Executor: give")
    with override_settings(EXECUTORS={"default": {"BACKEND": backend}}), refused:
        get_asgi_application()


@pytest.mark.parametrize("seconds", [-1, "20", None])
def test_wrong_timeout(seconds: Any) -> None:
    """A deadline that is none is refused."""
    with pytest.raises((TypeError, ValueError), match=r"^shutdown_timeout must be "):
        get_asgi_application(shutdown_timeout=seconds)


def test_deadlock() -> None:
    """Tasks of the loop's that all wait for tasks of the same executor get an error, and it goes on."""
    application = get_asgi_application()
    both = threading.Barrier(2)

    def task() -> int:
        both.wait(20)
        return executors["default"].submit(abs, -1).result()

    async def main() -> None:
        async with lifespan(application):
            found = await asyncio.gather(
                asyncio.to_thread(task), asyncio.to_thread(task), return_exceptions=True
            )
            assert Counter(map(type, found)) == {DeadlockError: 1, int: 1}

    asyncio.run(main())


def test_the_deadline(gate: Gate, caplog: pytest.LogCaptureFixture, postgres: PostgresObserver) -> None:
    """Each executor, named or the site's own, says once what it left; callbacks may use the ORM."""
    own = ThreadPoolExecutor(1, "own")
    counted: list[int] = []

    async def main() -> None:
        async with lifespan(get_asgi_application(shutdown_timeout=0.0)):
            for executor, workers in ((own, 1), (executors["default"], 2)):
                for _ in range(workers):
                    executor.submit(gate)
                waiting = executor.submit(abs, -1)
                waiting.add_done_callback(lambda _: counted.append(Entry.objects.count()))
            gate.wait_for(3)
        assert not postgres.left()
        gate.open()  # or the loop's end would wait

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.partition(" running")[0] for text in said] == [
        "executor=default timeout=0.0 shutdown left",
        "executor=own timeout=0.0 shutdown left",
    ]
    assert all(text.endswith("not_run=1 (builtins.abs x1)") for text in said)
    assert counted == [0, 0]


def test_within_the_deadline(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """What ends in time is waited for, without blocking the loop, and nothing is logged."""
    done: list[str] = []
    own = ThreadPoolExecutor(1, "own")
    own.submit(gate).add_done_callback(lambda _: done.append("own"))
    own.shutdown(wait=False)
    executors["default"].submit(gate).add_done_callback(lambda _: done.append("named"))
    gate.wait_for(2)

    async def open_when_it_ends() -> None:
        while not executors._is_shut_down:
            await asyncio.sleep(0)
        gate.open()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks, lifespan(get_asgi_application()):
            tasks.create_task(open_when_it_ends())

    asyncio.run(main())
    assert sorted(done) == ["named", "own"]
    assert caplog.messages == []


def test_a_second_lifespan() -> None:
    """A server that starts again in the same process has named executors that take tasks."""
    application = get_asgi_application()

    async def main() -> str:
        async with lifespan(application):
            return await asyncio.to_thread(thread_name)

    assert [asyncio.run(main()), asyncio.run(main())] == ["default_0", "default_0"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executors["default"].submit(print)
