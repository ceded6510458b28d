"""`load`: a queryset whose rows a worker fetches."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
from asgiref.sync import sync_to_async
from django.core import serializers
from django.core.exceptions import SynchronousOnlyOperation
from django.core.paginator import Paginator
from django.db import DataError, connection, connections, transaction
from django.db.models import Count, F, Func, IntegerField, Prefetch, QuerySet, Value
from django.db.models.functions import Cast
from django.template import Context, Engine
from django.test import TestCase

from django_executors import ExecutorError, ImmediateExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from django_executors.testing import run_inline
from tests.projects.testapp.models import Book, BookQuerySet, Entry, Shelf
from tests.support.ceilings import ceiling
from tests.support.forks import fork
from tests.support.gates import Gate
from tests.support.observers import PostgresObserver
from tests.support.running_cases import passes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("idle_before_and_after")

BOOKS = 6


@pytest.fixture(autouse=True)
def shelves() -> Iterator[None]:
    for number in range(2):
        shelf = Shelf.objects.create(name=f"shelf {number}")
        Book.objects.bulk_create(Book(shelf=shelf, number=3 * number + each) for each in range(3))
    yield
    Shelf.objects.all().delete()
    connections.close_all()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def _refuse(*_: object) -> NoReturn:
    raise AssertionError("a query of the caller's")


@contextmanager
def no_query() -> Iterator[None]:
    """In the calling thread, on whatever alias."""
    with connection.execute_wrapper(_refuse), connections["other"].execute_wrapper(_refuse):
        yield


def ordered() -> QuerySet[Book]:
    return Book.objects.order_by("number")


def rendered(template: str, books: object) -> str:
    return Engine().from_string(template).render(Context({"books": books}))


def through_rest_framework(books: Any) -> list[int]:
    from rest_framework.serializers import ModelSerializer

    class BookSerializer(ModelSerializer):
        class Meta:
            model = Book
            fields = ("number",)

    return [each["number"] for each in BookSerializer(books, many=True).data]


async def _numbers(books: Any) -> list[int]:
    return [book.number async for book in books]


@pytest.mark.parametrize(
    ("use", "right"),
    [
        (lambda books: [book.number for book in books], [*range(BOOKS)]),
        (len, BOOKS),
        (bool, True),
        (lambda books: books[2].number, 2),
        (lambda books: [book.number for book in books[1:3]], [1, 2]),
        (lambda books: [book.number for book in books[::4]], [0, 4]),
        (lambda books: books.first().number, 0),
        (lambda books: books.count(), BOOKS),
        (lambda books: books.exists(), True),
        (lambda books: books.contains(next(iter(books))), True),
        (lambda books: list(books)[5] in books, True),
        (lambda books: repr(books).startswith("<BookQuerySet [<Book: Book object"), True),
        (lambda books: [book.number for book in pickle.loads(pickle.dumps(books))], [*range(BOOKS)]),
        (lambda books: len(copy.copy(books)), BOOKS),
        (
            lambda books: rendered("{% for book in books %}{{ book.number }}{% endfor %}", books),
            "012345",
        ),
        (lambda books: rendered("{% if books %}{{ books|length }}{% endif %}", books), "6"),
        (lambda books: [each.number for each in Paginator(books, 4).page(2)], [4, 5]),
        (lambda books: Paginator(books, 4).num_pages, 2),
        (lambda books: serializers.serialize("json", books).count("testapp.book"), BOOKS),
        (through_rest_framework, [*range(BOOKS)]),
        (lambda books: asyncio.run(_numbers(books)), [*range(BOOKS)]),
    ],
)
def test_uses(
    use: Callable[[Any], Any], right: object, pool: ThreadPoolExecutor, postgres: PostgresObserver
) -> None:
    """Each waits for the worker's rows, and makes no query of its own."""
    connections.close_all()
    loaded = pool.load(ordered().filter(shelf__in=Shelf.objects.all()))
    assert isinstance(loaded, BookQuerySet)
    with no_query():
        assert use(loaded) == right
        assert len(loaded) == BOOKS
    assert pool.stats().completed == 1
    assert not postgres.left()


def test_at_once(pool: ThreadPoolExecutor) -> None:
    """The query runs in a worker before anybody uses it, and the instances are as from `using`."""
    thread = threading.get_ident()
    seen: list[int] = []

    class Seen(BookQuerySet):
        def _fetch_all(self) -> None:
            seen.append(threading.get_ident())
            super()._fetch_all()  # type: ignore[misc]

    queryset = Seen(Book).using("default")
    loaded = pool.load(queryset)
    pool.shutdown()
    assert seen
    assert thread not in seen
    assert {book._state.db for book in loaded} == {"default"}
    assert isinstance(loaded, Seen)


@pytest.mark.parametrize(
    ("queryset", "right"),
    [
        (lambda: ordered().values("number"), [{"number": each} for each in range(BOOKS)]),
        (lambda: ordered().values_list("number", flat=True), [*range(BOOKS)]),
        (lambda: Shelf.objects.annotate(n=Count("books")).order_by("n").values_list("n"), [(3,), (3,)]),
        (
            lambda: (
                Book.objects.filter(number=1)
                .values_list("number")
                .union(Book.objects.filter(number=2).values_list("number"))
            ),
            [(1,), (2,)],
        ),
        (lambda: ordered()[4:].values_list("number", flat=True), [4, 5]),
        (lambda: Book.objects.none(), []),
        (lambda: Entry.objects.using("other").values_list("name"), []),
    ],
)
def test_kinds(queryset: Callable[[], Any], right: list[Any], pool: ThreadPoolExecutor) -> None:
    loaded = pool.load(queryset())
    with no_query():
        assert sorted(loaded, key=str) == sorted(right, key=str)
        assert len(loaded) == len(right)


def test_related(pool: ThreadPoolExecutor) -> None:
    """What is selected and prefetched with it costs the caller no query either."""
    books = pool.load(ordered().select_related("shelf"))
    books_of = Prefetch("books", ordered(), to_attr="all_books")
    shelves = pool.load(Shelf.objects.order_by("name").prefetch_related(books_of))
    of_one = pool.load(Shelf.objects.get(name="shelf 1").books.order_by("number"))
    with no_query():
        assert [book.shelf.name for book in books] == ["shelf 0"] * 3 + ["shelf 1"] * 3
        assert [[book.number for book in each.all_books] for each in shelves] == [[0, 1, 2], [3, 4, 5]]
        assert [book.shelf.name for book in of_one] == ["shelf 1"] * 3


@pytest.mark.parametrize("used", [False, True])
def test_derived(used: bool, pool: ThreadPoolExecutor) -> None:
    """What derives another queryset makes an ordinary one, which sees what has come since."""
    loaded: Any = pool.load(ordered())
    if used:
        assert len(loaded) == BOOKS
    derived = [
        loaded.all(),
        loaded.filter(number__gte=0),
        loaded.after(-1),
        loaded.order_by("pk"),
        loaded.select_related("shelf"),
        loaded | Book.objects.none() | Book.objects.all(),
        copy.deepcopy(loaded),
    ]
    assert len(loaded) == BOOKS
    loaded[0].delete()
    for each in derived:
        assert type(each) is BookQuerySet
        assert len(each) == BOOKS - 1
        assert [*pickle.loads(pickle.dumps(each))] == [*each]
    assert loaded.aggregate(n=Count("pk")) == {"n": BOOKS - 1}
    assert len(list(loaded.iterator())) == BOOKS - 1
    assert len(loaded) == BOOKS


@pytest.mark.parametrize("used", [False, True])
def test_changed(used: bool, pool: ThreadPoolExecutor) -> None:
    """After `update` and `delete` its rows are asked for anew, as those of any queryset."""
    loaded = pool.load(ordered())
    if used:
        assert loaded[0].number == 0
    loaded.update(number=F("number") + 10)
    assert [book.number for book in loaded] == [*range(10, 10 + BOOKS)]
    Book.objects.all().delete()
    assert [book.number for book in loaded] == [*range(10, 10 + BOOKS)]


def failing() -> QuerySet[Book]:
    return Book.objects.annotate(bad=Cast(Value("not a number"), IntegerField()))


def test_error(pool: ThreadPoolExecutor) -> None:
    """It is raised where the rows are first needed, with the worker's traceback; then it tries again."""
    loaded = pool.load(failing())
    with pytest.raises(DataError) as raised, no_query():
        len(loaded)
    assert "loading.py" in "".join(traceback.format_exception(raised.value))
    with pytest.raises(DataError):
        bool(loaded)
    with pytest.raises(DataError):
        pickle.dumps(pool.load(failing()))


def test_nobody_uses_it(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """The rows are dropped with it; an error is logged, as that of a future that nobody asks."""
    loaded = pool.load(ordered())
    rows = vars(loaded)["_loading"].future
    assert rows.result(20)
    del loaded
    assert not [each for each in gc.get_referrers(rows) if isinstance(each, dict)]
    del rows
    with caplog.at_level(logging.ERROR, "django_executors"):
        failed = pool.load(failing())
        pool.shutdown()
        assert not caplog.records
        del failed
    assert "task=tests.projects.testapp.models.load(Book) failed, and nobody has asked" in caplog.text


def test_cancelled(pool: ThreadPoolExecutor) -> None:
    """A pool that is shut down meanwhile leaves the query to whoever needs its rows."""
    gate = Gate()
    [pool.submit(gate) for _ in range(2)]
    gate.wait_for(2)
    loaded = pool.load(ordered())
    pool.shutdown(wait=False, cancel_futures=True)
    gate.open()
    assert [book.number for book in loaded] == [*range(BOOKS)]


def test_not_begun(pool: ThreadPoolExecutor, postgres: PostgresObserver) -> None:
    """Whoever needs its rows runs it, and waits for no long queue."""
    gate = Gate()
    busy = [pool.submit(gate) for _ in range(2)]
    gate.wait_for(2)
    loaded = pool.load(ordered().prefetch_related("shelf__books"))
    counted = pool.load(ordered())
    assert [book.number for book in loaded] == [*range(BOOKS)]
    assert counted.count() == BOOKS
    with no_query():
        assert len(loaded[0].shelf.books.all()) == 3
        assert [book.number for book in counted] == [*range(BOOKS)]
    gate.open()
    [each.result(20) for each in busy]
    assert pool.stats().cancelled == 2
    connections.close_all()
    assert not postgres.left()


# Where it stays an ordinary queryset.


def is_ordinary(loaded: Any) -> bool:
    return type(loaded) is BookQuerySet


@pytest.mark.parametrize("how", ["atomic", "autocommit off", "BEGIN"])
def test_in_a_transaction(how: str, pool: ThreadPoolExecutor) -> None:
    """It sees the transaction's own rows."""

    def check() -> None:
        Book.objects.first().delete()  # type: ignore[union-attr]
        loaded = pool.load(ordered())
        assert is_ordinary(loaded)
        assert len(loaded) == BOOKS - 1
        assert not pool.stats().submitted
        elsewhere = pool.load(Entry.objects.using("other"))
        assert not len(elsewhere)
        assert pool.stats().submitted == 1

    if how == "atomic":
        with transaction.atomic():
            check()
    elif how == "BEGIN":
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            check()
            cursor.execute("ROLLBACK")
    else:
        transaction.set_autocommit(False)
        try:
            check()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)


def test_prefetching_from_a_transaction(pool: ThreadPoolExecutor) -> None:
    """What it prefetches may be from the alias that is in a transaction."""
    with transaction.atomic("other"):
        assert is_ordinary(pool.load(ordered().prefetch_related("shelf")))
        assert not is_ordinary(pool.load(ordered()))


def test_inline(pool: ThreadPoolExecutor) -> None:
    with run_inline():
        assert is_ordinary(pool.load(ordered()))
    with ImmediateExecutor() as immediate:
        assert is_ordinary(immediate.load(ordered()))
        assert len(immediate.load(ordered())) == BOOKS
        assert not immediate.stats().submitted


@pytest.mark.parametrize("when_full", ["block", "raise"])
def test_full_queue(when_full: Any) -> None:
    gate = Gate()
    with ThreadPoolExecutor(1, max_pending=1, when_full=when_full) as pool:
        pool.submit(gate)
        gate.wait_for()
        waits = pool.submit(gate)
        loaded = pool.load(ordered())
        assert is_ordinary(loaded)
        assert len(loaded) == BOOKS
        gate.open()
        waits.result(20)
        assert not pool.stats().rejected


def test_full_meanwhile(many_switches: None) -> None:
    """It never waits for room, though other threads take the last of it at the same moment."""
    gate, all_of_them = Gate(), threading.Barrier(4)
    with ThreadPoolExecutor(1, max_pending=1) as pool, ThreadPoolExecutor(4) as users:
        pool.submit(gate)
        gate.wait_for()

        def use() -> int:
            all_of_them.wait(20)
            return len(pool.load(ordered()))

        for _ in range(20):
            assert [each.result(20) for each in [users.submit(use) for _ in range(4)]] == [BOOKS] * 4
        gate.open()


def test_under_a_ceiling(pool: ThreadPoolExecutor) -> None:
    """Who has one of the permits does not wait for a worker that needs one."""
    with ceiling(1, timeout=0.0), ThreadPoolExecutor(1) as other:

        def task() -> tuple[bool, int]:
            assert Entry.objects.count() == 0
            loaded = pool.load(ordered())
            return is_ordinary(loaded), len(loaded)

        assert other.submit(task).result(20) == (True, BOOKS)


def test_initializers() -> None:
    """Nobody waits for a worker's initializer, and one that fails costs nobody the rows."""
    gate = Gate()
    with ThreadPoolExecutor(1, initializer=gate) as pool:
        loaded = pool.load(ordered())
        gate.wait_for()
        assert len(loaded) == BOOKS
        assert pool.stats().cancelled == 1
        gate.open()

    def fails() -> None:
        gate.wait_for()
        raise LookupError("of the initializer")

    with ThreadPoolExecutor(1, initializer=fails) as pool:
        loaded = pool.load(ordered())
        gate()
        assert len(loaded) == BOOKS


def test_in_a_forked_child(pool: ThreadPoolExecutor) -> None:
    """The query is the parent's; the child is told so, and may try again. It does not wait."""
    gate, waits = Gate(), threading.Event()

    class Slow(BookQuerySet):
        def _fetch_all(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                waits.set()
                gate()
            super()._fetch_all()  # type: ignore[misc]

    loaded = pool.load(Slow(Book))
    assert waits.wait(20)
    with ThreadPoolExecutor(1) as other:
        using = other.submit(len, loaded)
        assert wait_until(using.running)

        def child() -> None:
            with pytest.raises(ExecutorError, match="belongs to the parent"):
                len(loaded)
            assert len(loaded) == BOOKS

        connections.close_all()
        assert fork(child) == (0, "")
        gate.open()
        assert using.result(20) == BOOKS


def test_a_clone_with_arguments(pool: ThreadPoolExecutor) -> None:
    """A class's own way to derive one goes on working."""

    class Own(BookQuerySet):
        def _clone(self, extra: int = 0) -> Any:
            cloned = super()._clone()  # type: ignore[misc]
            cloned.extra_value = extra
            return cloned

        def with_extra(self) -> Any:
            return self._clone(extra=3)

    assert pool.load(Own(Book)).with_extra().extra_value == 3


def test_in_a_worker(pool: ThreadPoolExecutor) -> None:
    """In one of this pool it is ordinary; in one of another pool it is not."""

    def task() -> tuple[bool, int]:
        loaded = pool.load(ordered())
        return is_ordinary(loaded), len(loaded)

    assert pool.submit(task).result(20) == (True, BOOKS)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(task).result(20) == (False, BOOKS)


def test_evaluated(pool: ThreadPoolExecutor) -> None:
    queryset = ordered()
    assert len(queryset) == BOOKS
    assert pool.load(queryset) is queryset
    loaded = pool.load(ordered())
    assert pool.load(loaded) is loaded
    assert pool.stats().submitted == 1


# What it refuses.


@pytest.mark.parametrize(
    ("queryset", "said"),
    [
        (
            lambda: Book.objects,
            r"takes a QuerySet, .* not a .*Manager.*: add \.all\(\)",
        ),
        (lambda: Book, "takes a QuerySet"),
        (lambda: Book.objects.raw("SELECT * FROM testapp_book"), "takes no raw queryset"),
        (lambda: ordered().select_for_update(), "the locks would be the worker's"),
    ],
)
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ImmediateExecutor])
def test_refused(queryset: Callable[[], Any], said: str, kind: type[Any]) -> None:
    with kind() as executor, pytest.raises(TypeError, match=said):
        executor.load(queryset())


def test_other_processes() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError, match="by a ThreadPoolExecutor"):
        pool.load(ordered())


def test_after_shutdown(pool: ThreadPoolExecutor) -> None:
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.load(ordered())


# Async code.


def test_in_a_coroutine(pool: ThreadPoolExecutor) -> None:
    """As with any queryset: `async for` and `sync_to_async` wait, all else says so."""

    async def main() -> None:
        loaded = pool.load(ordered())
        with pytest.raises(SynchronousOnlyOperation, match="use `async for`"):
            len(loaded)
        assert await _numbers(loaded) == [*range(BOOKS)]
        assert len(loaded) == BOOKS
        assert await pool.load(ordered()).acount() == BOOKS
        assert await sync_to_async(len)(pool.load(ordered())) == BOOKS
        assert await sync_to_async(rendered)("{{ books|length }}", pool.load(ordered())) == "6"
        await sync_to_async(connections.close_all)()  # what asgiref's thread has run itself

    asyncio.run(main())
    assert pool.stats().submitted == 4


def test_in_an_asynchronous_test_case() -> None:
    """Its transaction is another thread's than its coroutine; its rows are seen without `run_inline`."""

    class Case(TestCase):
        async def test(self) -> None:
            await Shelf.objects.acreate(name="of the test")
            with ThreadPoolExecutor(1) as pool:
                loaded = pool.load(Shelf.objects.filter(name="of the test"))
                assert [shelf.name async for shelf in loaded] == ["of the test"]
                assert not pool.stats().submitted

    passes(Case)


class OfOne(QuerySet[Book]):
    """One that cannot be made without arguments."""

    def __init__(self, model: Any, query: Any = None, using: Any = None, hints: Any = None) -> None:
        super().__init__(model, query, using, hints)


def test_a_class_with_arguments(pool: ThreadPoolExecutor) -> None:
    """Pickling makes no instance by its constructor."""
    loaded = pool.load(OfOne(Book).order_by("number"))
    assert [book.number for book in pickle.loads(pickle.dumps(loaded))] == [*range(BOOKS)]


def test_threads_that_share_it(pool: ThreadPoolExecutor, many_switches: None) -> None:
    """Two threads that use it at once have its rows, as with any queryset."""
    for _ in range(20):
        loaded = pool.load(ordered())
        with ThreadPoolExecutor(3) as users:
            assert [*users.map(len, [loaded] * 3)] == [BOOKS] * 3


def test_a_subquery_of_several(pool: ThreadPoolExecutor) -> None:
    """No two threads have one: Django changes a query while it compiles it."""

    def subquery(queryset: Any) -> object:
        return queryset.query.where.children[0].rhs

    base = ordered().filter(shelf__in=Shelf.objects.order_by("books__number")[:9])
    first, second = base.filter(number=1), base.filter(number=2)
    assert subquery(first) is subquery(second)
    loaded = [pool.load(each) for each in (first, second)]
    to_run = [vars(each)["_loading"].task._queryset for each in loaded]
    assert len({id(subquery(each)) for each in [base, *to_run]}) == 3
    assert [len(each) for each in loaded] == [1, 1]


def test_a_query_that_cannot_be_pickled(pool: ThreadPoolExecutor) -> None:
    class Twice(Func):
        template = "2 * (%(expressions)s)"

    loaded = pool.load(ordered().annotate(twice=Twice("number", output_field=IntegerField())))
    with no_query():
        assert [book.twice for book in loaded] == [*range(0, 2 * BOOKS, 2)]
