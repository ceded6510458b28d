"""Tasks and views of `docs/django-tasks.md`, which includes them from here."""

# mypy: ignore-errors
# tasks: begin
try:
    from django.tasks import task
    from django.tasks.exceptions import TaskResultDoesNotExist
except ImportError:  # Django 5.2
    from django_tasks import task
    from django_tasks.exceptions import TaskResultDoesNotExist

from tests.projects.testapp.models import Entry


@task
def count_entries(prefix):
    return Entry.objects.filter(name__startswith=prefix).count()


# views: begin
from django.http import Http404, JsonResponse  # noqa: E402


def start(request, prefix):
    result = count_entries.enqueue(prefix)
    return JsonResponse({"id": result.id}, status=202)


def look(request, result_id):
    try:
        result = count_entries.get_result(result_id)
    except TaskResultDoesNotExist:
        raise Http404 from None
    value = result.return_value if result.status == "SUCCESSFUL" else None
    return JsonResponse({"status": result.status, "value": value})
