"""A forked child that comes back from a worker's task."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from . import living


def end_process(error: BaseException | None) -> NoReturn:
    """End this process, which is a forked child, in the thread that has forked.

    That thread was a worker of the parent's, and the rest of its work is the parent's: the task's
    future, its callbacks, the queue. Tasks that were submitted in the child are waited for. As in a
    child of `multiprocessing`, no exit handlers run.

    Args:
        error: what the task raised. The exit code is 1 then, and `SystemExit`'s own for that.
    """
    code = 1
    try:
        for executor in living.executors():
            executor.shutdown()
        if error is None:
            code = 0
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif isinstance(error.code, int | None):
            code = (error.code or 0) & 0xFF
        else:
            print(error.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
