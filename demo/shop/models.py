"""What was sold, and what it came to."""

from django.db import models


class Sale(models.Model):
    """One line of a bill."""

    product = models.CharField(max_length=50)
    quantity = models.PositiveIntegerField()
    price = models.DecimalField(max_digits=10, decimal_places=2)

    def __str__(self) -> str:
        return f"{self.quantity} {self.product}"


class Total(models.Model):
    """One figure of a report."""

    name = models.CharField(max_length=50)
    amount = models.DecimalField(max_digits=14, decimal_places=2)
    made_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.name}: {self.amount}"
