"""The pieces that every picture is made of."""

from collections.abc import Iterator
from html import escape

from .style import style


def head(width: int, height: int, *, title: str, description: str) -> Iterator[str]:
    """Begin a picture: what it shows, in words too, its looks and its background."""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="t d">'
    )
    yield f'<title id="t">{escape(title)}</title>'
    yield f'<desc id="d">{escape(description)}</desc>'
    yield f"<style>{style()}</style>"
    paper = f'width="{width - 1}" height="{height - 1}" rx="8"'
    yield f'<rect class="paper" x=".5" y=".5" {paper}/>'


def text(x: float, y: float, words: str, style: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'
