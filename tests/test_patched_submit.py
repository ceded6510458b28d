"""Tools that replace the standard class's `submit`: a task sees what they set in the worker."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Standard
from typing import Any

import pytest
from django.utils import translation

from django_executors import ThreadPoolExecutor, all_connections

from .gates import Gate
from .subprocesses import run_python
from .testapp.models import Entry

TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")
OTHER: contextvars.ContextVar[str] = contextvars.ContextVar("other", default="none")

pytestmark = pytest.mark.usefixtures("collector_off")


@pytest.fixture(autouse=True)
def tracer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give each task a trace of its own, as Sentry and OpenTelemetry do, and return all of them."""
    original = Standard.submit
    traces: list[str] = []

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        traces.append(trace := f"trace {len(traces)}")

        def traced(*args: Any, **kwargs: Any) -> Any:  # nobody can tell whom it calls
            token = TRACE.set(trace)
            try:
                return fn(*args, **kwargs)
            finally:
                TRACE.reset(token)

        return original(self, traced, *args, **kwargs)

    monkeypatch.setattr(Standard, "submit", submit)
    return traces


@pytest.fixture(params=[True, False], ids=["inherits", "does not inherit"])
def pool(request: pytest.FixtureRequest) -> Any:
    with ThreadPoolExecutor(1, inherit_context=request.param) as pool:
        yield pool


def submit(pool: ThreadPoolExecutor, fn: Callable[..., Any], *args: Any) -> Any:
    return pool.submit(fn, *args).result(10)


def by_map(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    (found,) = pool.map(lambda _: fn(), [1])
    return found


def on_commit(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    return pool.submit_on_commit(fn).result(10)


def in_executor(pool: ThreadPoolExecutor, fn: Callable[..., Any]) -> Any:
    async def main() -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, fn)

    return asyncio.run(main())


@pytest.mark.parametrize("way", [submit, by_map, on_commit, in_executor])
def test_the_task_sees_what_the_wrapper_set(
    way: Callable[..., Any], pool: ThreadPoolExecutor, tracer: list[str]
) -> None:
    """And its submitter and the next task do not."""
    TRACE.set("the submitter's")
    assert [way(pool, TRACE.get) for _ in range(3)] == ["trace 0", "trace 1", "trace 2"]
    assert TRACE.get() == "the submitter's"


def test_the_rest_of_the_context() -> None:
    """A task still has its submitter's variables and language."""
    OTHER.set("the submitter's")
    with ThreadPoolExecutor(1) as pool, translation.override("de"):
        found = submit(pool, lambda: (TRACE.get(), OTHER.get(), translation.get_language()))
    assert found == ("trace 0", "the submitter's", "de")


def test_connections_and_names(gate: Gate) -> None:
    """A traced task lets go of what it opened, and is called by its own name."""

    def names() -> list[str | None]:
        Entry.objects.count()
        return [found.task for found in all_connections()]

    with ThreadPoolExecutor(1) as pool:
        (name,) = submit(pool, names)
        assert name is not None
        assert name.endswith("names")
        assert all_connections() == ()


def test_the_name_of_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A log that tells of a task's error calls it by its own name too."""

    def fails() -> None:
        raise LookupError

    with caplog.at_level(logging.ERROR), ThreadPoolExecutor(1) as pool:
        pool.submit(fails)
    (record,) = caplog.records
    assert "fails failed" in record.getMessage()


def test_one_that_submits_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced `submit` may submit something else too: each has a context."""
    original = Standard.submit
    others: list[Future[Any]] = []

    def submit_two(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        others.append(original(self, OTHER.get))
        return original(self, fn, *args, **kwargs)

    monkeypatch.setattr(Standard, "submit", submit_two)
    OTHER.set("the submitter's")
    with ThreadPoolExecutor(2) as pool:
        assert submit(pool, OTHER.get) == "the submitter's"
        assert others[0].result(10) == "the submitter's"


def test_one_that_goes_on_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a replaced `submit` comes back to the standard one elsewhere, tasks run in that context."""
    original = Standard.submit

    def elsewhere(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def target() -> None:
            OTHER.set("of that thread")
            made.append(original(self, fn, *args, **kwargs))

        made: list[Future[Any]] = []
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(10)
        return made[0]

    monkeypatch.setattr(Standard, "submit", elsewhere)

    def task() -> tuple[str, int]:
        return OTHER.get(), Entry.objects.count()

    with ThreadPoolExecutor(1) as pool:
        assert submit(pool, task) == ("of that thread", 0)
        assert all_connections() == ()


SENTRY = """
import threading
import sentry_sdk
from sentry_sdk.integrations.threading import ThreadingIntegration
from sentry_sdk.transport import Transport

events = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        events.append(envelope.get_event())

sentry_sdk.init(
    transport=Kept, dsn="http://key@localhost/1", default_integrations=False,
    auto_enabling_integrations=False, integrations=[ThreadingIntegration(propagate_scope=True)],
)
from django_executors import ThreadPoolExecutor

both = threading.Barrier(2)

def task(number):
    sentry_sdk.set_tag("task", number)
    both.wait(20)
    try:
        raise LookupError(number)
    except LookupError:
        sentry_sdk.capture_exception()

for inherit_context in (True, False):
    events.clear()
    with sentry_sdk.isolation_scope(), ThreadPoolExecutor(2, inherit_context=inherit_context) as pool:
        sentry_sdk.set_tag("request", "the submitter's")
        for future in [pool.submit(task, number) for number in (1, 2)]:
            future.result(20)
        sentry_sdk.capture_message("of the request")
    print(*sorted(
        (event.get("message") or event["exception"]["values"][0]["value"], sorted(event["tags"].items()))
        for event in events
    ), sep="\\n")
"""

TAGS = """\
('1', [('request', "the submitter's"), ('task', 1)])
('2', [('request', "the submitter's"), ('task', 2)])
('of the request', [('request', "the submitter's")])
"""


def test_sentry() -> None:
    """With Sentry's own ThreadingIntegration, each error has its task's tags, the request its own."""
    ended = run_python(SENTRY, settings="tests.settings", warnings="ignore")
    assert (ended.stdout, ended.stderr) == (TAGS * 2, "")


OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.instrumentation.threading import ThreadingInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

kept, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
ThreadingInstrumentor().instrument()
tracer = trace.get_tracer("tests")
from django_executors import ThreadPoolExecutor

def task(number):
    with tracer.start_as_current_span(f"task {number}"):
        pass

for inherit_context in (True, False):
    kept.clear()
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        for number in range(2):
            with tracer.start_as_current_span(f"request {number}"):
                pool.submit(task, number)  # and nobody waits for it
    spans = {span.name: span for span in kept.get_finished_spans()}
    for number in range(2):
        parent, request = spans[f"task {number}"].parent, spans[f"request {number}"].context
        print(parent.span_id == request.span_id)
"""


def test_opentelemetry() -> None:
    """With OpenTelemetry's own ThreadingInstrumentor, each task belongs to its request's trace."""
    ended = run_python(OPENTELEMETRY, settings="tests.settings", warnings="ignore")
    assert (ended.stdout, ended.stderr) == ("True\n" * 4, "")
