"""What the page asks for."""

from django import forms


class RiseForm(forms.Form):
    """By how much prices are raised."""

    percent = forms.DecimalField(min_value=0, max_value=100, decimal_places=2, initial=5)
