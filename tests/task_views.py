"""Tasks and views of `docs/django-tasks.md`, which includes them from here."""

# mypy: ignore-errors
# tasks: begin
try:
    from django.tasks import task
except ImportError:  # Django 5.2
    from django_tasks import task

from .testapp.models import Entry


@task
def count_entries(prefix):
    return Entry.objects.filter(name__startswith=prefix).count()


# views: begin
from django.http import JsonResponse  # noqa: E402


def start(request, prefix):
    result = count_entries.enqueue(prefix)
    return JsonResponse({"id": result.id}, status=202)


def look(request, result_id):
    result = count_entries.get_result(result_id)
    value = result.return_value if result.status == "SUCCESSFUL" else None
    return JsonResponse({"status": result.status, "value": value})
