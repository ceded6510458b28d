"""A task in its caller's thread uses the caller's connections, and cannot close them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

from django.conf import settings
from django.db import connections

from . import ledger
from .hook import adopt


class _Borrower:
    """One such task. It goes with the block below, however that is left."""


@contextlib.contextmanager
def callers_connections() -> Iterator[None]:
    """Have `close()` do nothing, in this block, to what is open in the calling thread as it begins.

    Tasks that were written for worker threads close connections at their end, as the usual recipes
    do. Here that would end the caller's transaction. What the task itself connects, it may close, and
    what the server has ended is closed as ever.
    """
    borrower = _Borrower()
    mark = weakref.ref(borrower)
    borrowed: list[ledger.Entry] = []
    try:
        for wrapper in connections.all(initialized_only=True) if settings.configured else ():
            if wrapper.connection is not None:
                adopt(wrapper)
                if (entry := ledger.entry_of(wrapper)) is not None:
                    entry.borrowers.append(mark)
                    borrowed.append(entry)
        yield
    finally:
        # An interruption here leaves dead marks, which count no more.
        for entry in borrowed:
            entry.borrowers.remove(mark)
