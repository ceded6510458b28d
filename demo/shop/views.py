"""A page that starts a job in this process, and says how it gets on."""

import itertools
from concurrent.futures import Future

from django.db.models import Sum
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from django_executors import all_connections, executors

from .forms import RiseForm
from .models import Sale
from .prices import Rise

#: By number, those of this process.
jobs: dict[int, tuple[Rise, Future[str]]] = {}
numbers = itertools.count(1)


@require_http_methods(["GET", "POST"])
def page(request: HttpRequest, number: int | None = None) -> HttpResponse:
    """Show the form, and one job; start a job."""
    form = RiseForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        rise, number = Rise(form.cleaned_data["percent"]), next(numbers)
        jobs[number] = rise, executors["default"].submit(rise.run)
        return redirect("job", number)
    return render(request, "shop/page.html", {"form": form, "number": number, **sales()})


# sales: begin
def sales() -> dict[str, object]:
    """Start the page's queries, each in a worker; the template waits for their rows."""
    load = executors["default"].load
    return {
        "dearest": load(Sale.objects.order_by("-price", "pk")[:5]),
        "units": load(
            Sale.objects.values("product").annotate(units=Sum("quantity")).order_by("product")
        ),
    }


# sales: end


@require_GET
def state(request: HttpRequest, number: int) -> JsonResponse:
    """Say how far a job has got, what came of it, and what the process's workers hold now."""
    if number not in jobs:
        raise Http404
    rise, future = jobs[number]
    held = [
        f"{info.alias}: {info.task} in {info.thread_name}" for info in all_connections() if info.executor
    ]
    error = future.exception() if future.done() else None
    return JsonResponse(
        {
            "done": rise.done,
            "total": rise.total,
            "result": future.result() if future.done() and error is None else None,
            "error": None if error is None else type(error).__name__,
            "connections": held,
        }
    )
