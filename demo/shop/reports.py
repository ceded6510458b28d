"""A report: its jobs, on whatever executor the settings name."""

from decimal import Decimal

from django_executors import executors

from .jobs import JOBS
from .models import Total


def write_report() -> dict[str, Decimal]:
    """Have all jobs done, and return what they have written."""
    futures = [executors["default"].submit(job) for job in JOBS]
    for future in futures:
        future.result()
    return dict(Total.objects.values_list("name", "amount"))
