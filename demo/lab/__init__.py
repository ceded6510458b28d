"""The experiment's parts, each in a file of its own."""

import sys
from pathlib import Path

# `private_servers` belongs to the checkout and is not installed.
TOOLS = Path(__file__).resolve().parents[2] / "tools"
if str(TOOLS) not in sys.path:
    sys.path.append(str(TOOLS))
