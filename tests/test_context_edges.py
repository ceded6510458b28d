"""Where a task's context ends, what it leans on, and who else relies on it."""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.cache import caches
from django.urls import get_script_prefix, set_script_prefix
from django.utils.translation import trans_real

from django_executors import ImmediateExecutor, ThreadPoolExecutor
from django_executors.execution import thread
from django_executors.lifecycle import context, variables
from django_executors.testing import run_inline

from .gates import Gate
from .subprocesses import run_python
from .test_context import start_as_python_3_14_does
from .waiting import wait_until

VARIABLE: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


class Thing:
    """What a request keeps in a ContextVar."""


def submit_with_a_thing(submit: Callable[[], object]) -> weakref.ref[Thing]:
    """Submit from a context that holds a thing, and return a reference that does not keep it."""

    def set_and_submit() -> weakref.ref[Thing]:
        thing = Thing()
        VARIABLE.set(thing)
        submit()
        return weakref.ref(thing)

    return contextvars.Context().run(set_and_submit)


def is_gone(thing: weakref.ref[Thing]) -> bool:
    return wait_until(lambda: thing() is None, within=10)


def fail() -> None:
    VARIABLE.get()
    raise LookupError("of the task")


@pytest.fixture(params=[False, True], ids=["", "threads inherit"])
def threads_inherit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test as things are, and where a thread starts in the context of the one that starts it."""
    if request.param:
        monkeypatch.setattr(thread, "_THREADS_INHERIT", True)
        monkeypatch.setattr(threading.Thread, "start", start_as_python_3_14_does)


@pytest.mark.usefixtures("collector_off", "threads_inherit")
@pytest.mark.parametrize("task", [VARIABLE.get, fail])
@pytest.mark.parametrize("inherit_context", [True, False])
def test_submitters_context_is_let_go(task: Callable[[], object], inherit_context: bool) -> None:
    """A submitter's context does not outlive its task: neither its worker nor the pool keeps it."""
    with ThreadPoolExecutor(1, inherit_context=inherit_context) as pool:
        thing = submit_with_a_thing(lambda: pool.submit(task))
        pool.submit(int).result(10)
        assert is_gone(thing)


@pytest.mark.usefixtures("collector_off", "threads_inherit")
def test_context_of_a_cancelled_task_is_let_go(gate: Gate) -> None:
    """Nor does it outlive a task that was cancelled before it began."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate)
        thing = submit_with_a_thing(lambda: pool.submit(int).cancel())
        gate.open()
        assert is_gone(thing)


@pytest.mark.usefixtures("collector_off")
@pytest.mark.parametrize("task", [VARIABLE.get, fail])
def test_what_a_task_sets_is_let_go(task: Callable[[], object]) -> None:
    """What a task has set of its context goes when it ends, wherever it runs."""
    things: list[weakref.ref[Thing]] = []

    def sets() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        VARIABLE.set(thing)
        task()

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1, inherit_context=False) as other:
        for executor in (pool, other, ImmediateExecutor()):
            executor.submit(sets).exception(10)
        with run_inline():
            pool.submit(sets).exception(10)
        assert [is_gone(thing) for thing in things] == [True] * 4


@pytest.mark.parametrize("name", ["time_zone", "urlconf", "script_prefix", "async_executor"])
def test_where_django_keeps_it(name: str) -> None:
    """The private names of Django and asgiref are where they were: else each submit is slower."""
    assert isinstance(getattr(variables, name), contextvars.ContextVar)


@pytest.mark.parametrize(("owner", "name"), [(trans_real, "_active"), (caches, "_connections")])
def test_where_django_keeps_what_settings_replace(owner: object, name: str) -> None:
    """So are those that are looked up at each submit, since `override_settings` replaces them."""
    assert isinstance(variables.variable_of(getattr(owner, name)), contextvars.ContextVar)


def test_routes_of_asgiref() -> None:
    """What is left out of a task's context, and what is put in its place, is where it was."""
    assert [route.name for route in context._routes] == [
        "thread_sensitive_context",
        "deadlock_context",
        "async_single_thread_context",
    ]
    assert isinstance(SyncToAsync.single_thread_executor, context._ProcessWideThread)


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_no_bool(value: Any) -> None:
    """`inherit_context` is True or False; anything else is refused by name."""
    with pytest.raises(TypeError, match=f"^inherit_context must be True or False, not {value!r}$"):
        ThreadPoolExecutor(1, inherit_context=value)


def test_script_prefix_in_a_thread_with_a_copied_context() -> None:
    """A script prefix holds where it is seen, though not in a thread that runs in a copied context."""

    def prefix_in_a_task() -> str:
        return pool.submit(get_script_prefix).result(10)

    def both() -> None:
        set_script_prefix("/shop/")
        copied = contextvars.copy_context()
        other = threading.Thread(
            target=copied.run, args=(lambda: there.extend([get_script_prefix(), prefix_in_a_task()]),)
        )
        other.start()
        other.join(10)
        here.extend([get_script_prefix(), prefix_in_a_task()])

    here: list[str] = []
    there: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        contextvars.Context().run(both)
    assert here == ["/shop/"] * 2
    assert there[1] == there[0]  # whichever asgiref says


WITHOUT_SETTINGS = """
import contextvars
from django.urls import get_script_prefix, set_script_prefix
from django.utils import timezone
from django_executors import ImmediateExecutor, ThreadPoolExecutor

variable = contextvars.ContextVar("variable", default="nothing")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    assert executor.submit(variable.get).result(10) == "nothing"
    executor.submit(variable.set, "of a task").result(10)
    assert executor.submit(variable.get).result(10) == "nothing"
variable.set("of the submitter")
set_script_prefix("/shop/")
for executor in (ThreadPoolExecutor(1), ImmediateExecutor()):
    seen = executor.submit(lambda: (variable.get(), get_script_prefix())).result(10)
    assert seen == ("of the submitter", "/shop/"), seen
pool = ThreadPoolExecutor(1, initializer=variable.set, initargs=("of the pool",), inherit_context=False)
assert pool.submit(variable.get).result(10) == "of the pool"
timezone.activate("Europe/Berlin")
assert ThreadPoolExecutor(1).submit(variable.get).result(10) == "of the submitter"
"""


def test_without_settings() -> None:
    """A program that has not configured Django's settings may use executors, and they inherit."""
    ended = run_python(WITHOUT_SETTINGS, settings=None)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_open_telemetry() -> None:
    """A span opened in a task belongs to its submitter's trace, under the span that it was in."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")

    def task(_: object = None) -> None:
        with tracer.start_as_current_span("task"):
            pass

    with ThreadPoolExecutor(1) as pool:
        with tracer.start_as_current_span("request") as span:
            request = span.get_span_context()
            pool.submit(task).result(10)
            list(pool.map(task, range(2)))
            ImmediateExecutor().submit(task).result(0)
        pool.submit(task).result(10)
    *tasks, _, outside = exporter.get_finished_spans()
    assert len(tasks) == 4
    for each in tasks:
        assert (each.context.trace_id, each.parent.span_id) == (request.trace_id, request.span_id)
    assert outside.context.trace_id != request.trace_id
    assert outside.parent is None
