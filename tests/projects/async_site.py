"""The site of `docs/async.md`, which includes it from here, in a process without a garbage collector."""

# application: begin
from django_executors.asgi import get_asgi_application

application = get_asgi_application()

# views: begin
import asyncio  # noqa: E402

from asgiref.sync import async_to_sync, sync_to_async  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from django_executors import ThreadPoolExecutor, executors  # noqa: E402
from tests.projects.testapp.models import Entry  # noqa: E402

# await: begin
pool = ThreadPoolExecutor(8)


def count(prefix):
    return Entry.objects.filter(name__startswith=prefix).count()


async def counted(request, prefix):
    return HttpResponse(await pool.submit(count, prefix))


async def counted_twice(request, prefix):
    async with asyncio.timeout(10):
        found = await asyncio.gather(pool.submit(count, prefix), pool.submit(count, prefix))
    return HttpResponse(sum(found))


# to_thread: begin
async def counted_in_a_thread(request, prefix):
    return HttpResponse(await asyncio.to_thread(count, prefix))


# coroutine: begin
async def acount(prefix):
    return await Entry.objects.filter(name__startswith=prefix).acount()


def count_in_a_worker(prefix):
    return async_to_sync(acount)(prefix)


async def counted_by_a_coroutine(request, prefix):
    return HttpResponse(await pool.submit(count_in_a_worker, prefix))


# commit: begin
@sync_to_async
def create(name):
    with transaction.atomic():
        Entry.objects.create(name=name)
        return pool.submit_on_commit(count, name)


async def created_and_counted(request, name):
    future = await create(name)
    return HttpResponse(await future)


# end
import concurrent.futures.thread  # noqa: E402
import gc  # noqa: E402
import threading  # noqa: E402

from django.http import JsonResponse  # noqa: E402

from tests.support.waiting import wait_until  # noqa: E402

gc.disable()
single = ThreadPoolExecutor(1)
going_on = threading.Event()
ran: list[str] = []


async def in_executor(request, prefix):
    loop = asyncio.get_running_loop()
    return HttpResponse(
        await loop.run_in_executor(pool, count, prefix) + await loop.run_in_executor(None, count, prefix)
    )


async def hold(request):
    single.submit(going_on.wait, 20)
    return HttpResponse()


async def wait_behind(request, how):
    if how == "submit":
        await single.submit(ran.append, how)
    else:
        await asyncio.get_running_loop().run_in_executor(single, ran.append, how)
    return HttpResponse()


async def go_on(request):
    going_on.set()
    single.shutdown()
    return await numbers(request)


async def numbers(request):
    stats = single.stats()
    return JsonResponse({"pending": stats.pending, "cancelled": stats.cancelled, "ran": ran})


async def thread_names(request):
    return HttpResponse(await asyncio.to_thread(lambda: threading.current_thread().name))


def write_when_it_ends(name, executor):
    """Go on when this task's own executor has been shut down, or Python exits."""
    exits = vars(concurrent.futures.thread)
    assert wait_until(lambda: executor._is_shut_down or exits["_shutdown"], within=60)
    Entry.objects.create(name=name)


async def leave_work(request):
    named = executors["default"]
    for _ in range(10):
        asyncio.get_running_loop().run_in_executor(None, write_when_it_ends, "to_thread", named)
        named.submit(write_when_it_ends, "named", named)
        pool.submit(write_when_it_ends, "own", pool)
    return HttpResponse()


urlpatterns = [
    path("counted/<prefix>", counted),
    path("counted_twice/<prefix>", counted_twice),
    path("counted_in_a_thread/<prefix>", counted_in_a_thread),
    path("counted_by_a_coroutine/<prefix>", counted_by_a_coroutine),
    path("in_executor/<prefix>", in_executor),
    path("created_and_counted/<name>", created_and_counted),
    path("hold", hold),
    path("wait_behind/<how>", wait_behind),
    path("go_on", go_on),
    path("numbers", numbers),
    path("thread_names", thread_names),
    path("leave_work", leave_work),
]
