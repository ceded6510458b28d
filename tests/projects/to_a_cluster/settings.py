"""The demo's settings, but for the executor."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "demo"))

from settings import *  # type: ignore[import-not-found]  # noqa: F403

EXECUTORS = {"default": {"BACKEND": os.environ["BACKEND"]}}
