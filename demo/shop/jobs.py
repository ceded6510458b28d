"""The three jobs of a report: each an aggregate over one table and an insert into another."""

from django.db.models import F, Max, Sum

from .models import Sale, Total


def write_revenue() -> None:
    total = Sale.objects.aggregate(amount=Sum(F("quantity") * F("price")))
    Total.objects.create(name="revenue", amount=total["amount"])


def write_units() -> None:
    total = Sale.objects.aggregate(amount=Sum("quantity"))
    Total.objects.create(name="units", amount=total["amount"])


def write_dearest() -> None:
    total = Sale.objects.aggregate(amount=Max("price"))
    Total.objects.create(name="dearest", amount=total["amount"])


JOBS = (write_revenue, write_units, write_dearest)
