"""What the terminal can show, and a progress bar."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Of the 256 colours, by the keys of the ways; to be read on light and on dark.
COLOURS = {"standard": 166, "recipe": 133, "ours": 32}
WIDEST = 110
BAR = 30


@dataclass(frozen=True)
class Terminal:
    """Standard output's abilities."""

    live: bool
    colour: bool
    unicode: bool
    width: int

    @classmethod
    def detect(cls) -> "Terminal":
        live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        return cls(
            live=live,
            colour=live and not os.environ.get("NO_COLOR"),
            unicode=_can_encode("█▁░╌"),
            width=min(shutil.get_terminal_size().columns, WIDEST),
        )

    def paint(self, text: str, key: str) -> str:
        """`text` in the colour of the way with this key."""
        return f"\033[38;5;{COLOURS[key]}m{text}\033[0m" if self.colour else text

    def bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self.colour else text

    @contextlib.contextmanager
    def bar(self, title: str, *, of: int) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar, where lines can be drawn over, and take it away at the end.

        Yields what draws it: called with how many of `of` are done, and the connections open now.
        """
        filled, empty = ("█", "░") if self.unicode else ("#", ".")

        def draw(done: int, connections: int) -> None:
            if self.live:
                full = BAR * done // of
                bar = filled * full + empty * (BAR - full)
                line = f"{title:<18} {bar} {connections:>3} connections"
                print(f"\r\033[K{line[: self.width - 1]}", end="", flush=True)

        draw(0, 0)
        try:
            yield draw
        finally:
            if self.live:
                print("\r\033[K", end="", flush=True)


def _can_encode(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
