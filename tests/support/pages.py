"""The pages of the documentation, and the code on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


BLOCK = re.compile(r"^```\{code-block\} (\w+)\n:caption: (.+)\n\n((?:.*\n)*?)```$", re.MULTILINE)


PLAIN = re.compile(r"^```python\n((?:.*\n)*?)```$", re.MULTILINE)


def plain_blocks(page: Path) -> list[str]:
    """Return the Python of a page that belongs to no file."""
    return PLAIN.findall(page.read_text())


DIFF = re.compile(r"^```diff\n-(.+)\n\+(.+)\n```$", re.MULTILINE)


def defined_by(code: str, **names: Any) -> dict[str, Any]:
    exec(code, names)
    return names
