"""The one clock: each deadline, each age and each idle time of this library's is by it.

freezegun and its like put a frozen clock in the place of `time.monotonic` wherever a module's attribute
refers to it. They do not look into classes.
"""

from __future__ import annotations

import time


class Clock:
    """Holds the real one."""

    monotonic = staticmethod(time.monotonic)
