"""What the tests about forks share."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from django.db import connections

from tests.support.cache_clients import connection_of


def fork(child: Callable[[], object]) -> tuple[int, str]:
    """Run `child` in a fork; return its exit code and what it had to say when it failed."""
    reading, writing = os.pipe()
    pid = quiet_fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            child()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as words:
        said = words.read()
    return exit_code(pid), said


def quiet_fork() -> int:
    """Fork. The child ends by itself if it hangs."""
    with warnings.catch_warnings():
        # Python 3.12 and newer warn of a fork beside threads: that is what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(45)
    return pid


def exit_code(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def server_pid(alias: str) -> int:
    """Ask the server, on this thread's connection: it answers only if the session lives."""
    sql = "SELECT connection_id()" if alias == "mariadb" else "SELECT pg_backend_pid()"
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        pid: int = cursor.fetchone()[0]
        return pid


def session(alias: str) -> object:
    """Use the calling thread's session of a database or a cache, and return what tells it apart."""
    return server_pid(alias) if alias in connections.settings else connection_of(alias)
