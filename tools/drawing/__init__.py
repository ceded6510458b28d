"""What the pictures of the demo and of the benchmarks have in common: the look, and some SVG."""

from .elements import head, text
from .style import style

__all__ = ["head", "style", "text"]
