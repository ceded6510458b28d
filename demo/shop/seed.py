"""The same sales each time, and the totals that every report must come to."""

import random
from decimal import Decimal

from .models import Sale

PRODUCTS = ("apples", "bread", "cheese", "dates", "eggs")


def sow(rows: int) -> dict[str, Decimal]:
    """Write `rows` sales and return the right totals by name, added up here and not by the database."""
    dice = random.Random(20)
    sales = [
        Sale(
            product=dice.choice(PRODUCTS),
            quantity=dice.randint(1, 9),
            price=Decimal(dice.randint(50, 5000)) / 100,
        )
        for _ in range(rows)
    ]
    Sale.objects.bulk_create(sales)
    return {
        "revenue": sum((sale.quantity * sale.price for sale in sales), Decimal()),
        "units": Decimal(sum(sale.quantity for sale in sales)),
        "dearest": max(sale.price for sale in sales),
    }
