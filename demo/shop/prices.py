"""A job that takes a while: all prices are raised, some rows at a time."""

from decimal import Decimal

from django.db.models import F, Sum

from .models import Sale

ROWS = 500


class Rise:
    """One rise of all prices, and how far it has got. Any thread may look."""

    def __init__(self, percent: Decimal) -> None:
        self.percent = percent
        self.total = self.done = 0

    def run(self) -> str:
        """Raise them, and return what all sales come to then."""
        keys = list(Sale.objects.order_by("pk").values_list("pk", flat=True))
        self.total = len(keys)
        factor = 1 + self.percent / 100
        for first in range(0, self.total, ROWS):
            sales = Sale.objects.filter(pk__in=keys[first : first + ROWS])
            self.done += sales.update(price=F("price") * factor)
        revenue = Sale.objects.aggregate(amount=Sum(F("quantity") * F("price")))["amount"]
        return f"{revenue or 0:.2f}"
