"""A connection that its worker keeps from one task to the next: park, reset, resume.

While it is kept, the driver's connection is parked beside the wrapper, whose `connection` is None: to
Django, and to the code of the next task, this is a wrapper that has not connected yet. The first query
makes Django connect, and the hook on `connect` asks `resume` first. So nothing is spent on a task that
makes no query, and done-callbacks meet a fresh session as the next task does.

At CONN_MAX_AGE = 0 Django promises a session of one's own, and a kept one is made fresh by restoring:
the server resets it, in a round trip that is sent when the task ends and answered when the next one
queries, and the `__dict__` of the wrapper and of the driver's objects are put back as they first were.
Nothing is compared, and nobody has to know what a task may have set. Only where that is proven right: on
Django's own PostgreSQL wrappers, on psycopg 3, without a pooler. Everywhere else it is closed.

psycopg serialises what threads do with one connection by its `lock`; libpq, below it, does not, and
crashes the process. So nothing here uses a `PGconn` without that lock.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import select
import socket
from collections import deque
from functools import lru_cache
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_executors.clock import Clock
from django_executors.naming import log

from .ledger import Entry
from .wrapper import is_open, is_pooled

logger = logging.getLogger(__name__)

#: The most seconds that a reset may take; then the connection is closed.
RESET_TIMEOUT = 1.0
#: A session is reset only in this many seconds after connecting, so that what a new connection
#: would meet (ALTER ROLE … SET, a fail-over, a changed certificate) arrives.
MAX_RESET_AGE = 60.0
#: A connection that was idle for less, and whose socket is silent, is taken to be alive
#: (HikariCP's bypass window, in seconds).
BYPASS_WINDOW = 0.5

#: Aliases whose sessions are not reset in this process: through a pooler it would hit other clients, or
#: the server has refused.
_not_reset: set[str] = set()
#: Aliases whose server has another time zone than Django: to forget it costs a round trip more.
_other_zone: set[str] = set()

#: The wrappers whose sessions are reset: these classes exactly, and no subclass.
_RESETTABLE = {
    "django.db.backends.postgresql.base",
    "django.contrib.gis.db.backends.postgis.base",
}

# psycopg's ExecStatus and DiagnosticField, by number: no driver is imported here.
_COMMAND_OK, _TUPLES_OK = 1, 2
_SQLSTATE = 67
# «Operator intervention» and a time limit of the task's own making: no refusal to reset.
_INTERFERENCE = (b"57", b"25P")

_DISCARD_ALL = b"DISCARD ALL"
# What it stands for, since it refuses to run together with others.
_RESET_AND_SET = (
    "CLOSE ALL;SET SESSION AUTHORIZATION DEFAULT;RESET ROLE;RESET ALL;DEALLOCATE ALL;UNLISTEN *;"
    "SELECT pg_advisory_unlock_all();DISCARD PLANS;DISCARD TEMP;DISCARD SEQUENCES;SET TimeZone TO '{}'"
)


class AsMade:
    """The `__dict__` of an object as it is now, to put it back.

    Args:
        copied: the classes of values that change in place, and are copied.
    """

    __slots__ = ("_changing", "_values")

    def __init__(self, values: dict[str, Any], *copied: type[Any]) -> None:
        self._values = values.copy()
        self._changing: list[tuple[str, Any]] = [
            (name, value.copy()) for name, value in values.items() if isinstance(value, copied)
        ]

    def put_back(self, thing: object) -> None:
        now = vars(thing)
        now.clear()
        self.put_into(now)

    def put_into(self, now: dict[str, Any]) -> None:
        now.update(self._values)
        for name, value in self._changing:
            now[name] = value.copy()


def as_made(wrapper: BaseDatabaseWrapper) -> AsMade:
    """Remember a wrapper. Its settings, a dict, are those of all wrappers of its alias."""
    return AsMade(vars(wrapper), list, deque)


class Session:
    """How a session was right after connecting, and how to bring it back there."""

    __slots__ = ("_connected", "_driver", "_role", "_time_zone")

    def __init__(self, wrapper: BaseDatabaseWrapper, set_by_connecting: set[str]) -> None:
        driver: Any = wrapper.connection
        now = vars(wrapper)
        #: What connecting has set on the wrapper.
        self._connected = AsMade(
            {name: now[name] for name in set_by_connecting & now.keys()}, list, deque
        )
        # A copy makes the driver's own map replace, from now on, what is changed in it.
        type(driver.adapters)(driver.adapters)
        own = [each for each in vars(driver).values() if type(each).__module__.startswith("psycopg.")]
        parts = [driver, *(each for each in own if hasattr(each, "__dict__")), driver.adapters.types]
        self._driver = [(part, AsMade(vars(part), list, deque, dict)) for part in parts]
        self._time_zone = driver.pgconn.parameter_status(b"TimeZone")
        self._role = wrapper.settings_dict["OPTIONS"].get("assume_role")

    def send_reset(self, wrapper: BaseDatabaseWrapper) -> None:
        """Ask for a new session's state, and do not wait.

        Raises:
            Exception: it cannot be asked now.
        """
        sql = _DISCARD_ALL
        if wrapper.alias in _other_zone:
            sql = _reset_and_set(self._time_zone)
        _send(wrapper.connection, sql)

    def receive_reset(self, driver: Any, deadline: float) -> None:
        """Wait for the answer.

        Raises:
            Exception: there was none, or a refusal.
        """
        _receive(driver, deadline)
        while driver.pgconn.notifies():
            pass  # it came for the task before; psycopg has not read it

    def restore(self, wrapper: BaseDatabaseWrapper, driver: Any) -> None:
        """Have wrapper and driver as they were right after connecting.

        Raises:
            Exception: what Django's `connect()` raised, or a receiver of `connection_created`.
        """
        for part, made in self._driver:
            made.put_back(part)
        self._connected.put_into(vars(wrapper))
        if driver.pgconn.parameter_status(b"TimeZone") != self._time_zone:
            _other_zone.add(wrapper.alias)
        elif not self._role and len(connection_created.receivers) <= 1:  # our own is one
            return
        # Django's own connect(): autocommit, role, time zone, `connection_created`. Only the socket is
        # there already. Attributes of the instance: its class stays Django's.
        vars(wrapper).update(get_connection_params=dict, get_new_connection=lambda params: driver)
        try:
            type(wrapper).connect(wrapper)
        finally:
            del vars(wrapper)["get_connection_params"], vars(wrapper)["get_new_connection"]


@lru_cache
def _reset_and_set(time_zone: bytes) -> bytes:
    return _RESET_AND_SET.format(time_zone.decode().replace("'", "''")).encode()


def prepare(wrapper: BaseDatabaseWrapper, set_by_connecting: set[str]) -> Session | None:
    """Return how to reset the session of this wrapper, which has just connected; None: not at all.

    Asks the server which backend it is, once a connection: through a pooler it is another one.

    Args:
        set_by_connecting: names in its `__dict__`.
    """
    settings, driver = wrapper.settings_dict, wrapper.connection
    if (
        settings["CONN_MAX_AGE"] != 0
        or wrapper.alias in _not_reset
        or type(wrapper).__module__ not in _RESETTABLE
        or is_pooled(wrapper)
        or settings.get("DISABLE_SERVER_SIDE_CURSORS")  # what one sets behind a pooler
        or getattr(driver, "pgconn", None) is None
        # A reset goes behind the back of psycopg's cache of prepared statements.
        or driver.prepare_threshold is not None
    ):
        return None
    try:
        asked = Clock.monotonic()
        with driver.lock:
            # No timeout: an answer that arrives late would be read by the task's first query.
            told = driver.pgconn.exec_(b"SELECT pg_backend_pid()")
        if int(told.get_value(0, 0)) != driver.pgconn.backend_pid:
            logger.debug("alias=%s its sessions are not reset: a pooler stands between", wrapper.alias)
            _not_reset.add(wrapper.alias)
            return None
        if Clock.monotonic() - asked <= RESET_TIMEOUT:  # or no reset would be answered in time
            return Session(wrapper, set_by_connecting)
    except Exception:
        # Connecting went well. Where it cannot be reset, it is closed.
        logger.debug("alias=%s its session cannot be reset", wrapper.alias, exc_info=True)
    return None


def park(entry: Entry, wrapper: BaseDatabaseWrapper) -> bool:
    """Keep this connection, which its task has left clean, for the next task.

    Returns:
        False if it may not be kept: then it has to be closed.
    """
    driver = wrapper.connection
    if not is_open(wrapper) or wrapper.errors_occurred or not wrapper.autocommit or is_pooled(wrapper):
        return False
    if (session := entry.session) is not None:
        until = entry.opened_at + MAX_RESET_AGE
    elif wrapper.settings_dict["CONN_MAX_AGE"] == 0 or not _is_drivers_own(wrapper):
        return False
    else:
        until = float("inf") if wrapper.close_at is None else wrapper.close_at
    if Clock.monotonic() >= until:
        return False
    try:
        if session is not None:
            if driver.prepare_threshold is not None:
                return False
            session.send_reset(wrapper)
        elif wrapper.vendor == "mysql":
            driver.rollback()  # its driver cannot see a transaction that was begun by hand
    except Exception:  # noqa: BLE001 - then it is closed
        return False
    entry.park(wrapper, until)
    if session is not None:
        entry.made.put_back(wrapper)
    else:
        wrapper.queries_log.clear()
    return True


def _is_drivers_own(wrapper: Any) -> bool:
    """Tell whether a connection is of its driver's class, and no proxy of some pool's."""
    of = type(wrapper.connection).__module__.partition(".")[0]
    return bool(of == wrapper.Database.__name__.partition(".")[0])


def resume(entry: Entry, wrapper: Any) -> bool:
    """Use the parked connection again, as if Django had just connected.

    Returns:
        False if it is no good any more, or was taken away for its permit: then it has been closed.

    Raises:
        Exception: what Django's `connect()` raised, or a receiver of `connection_created`.
    """
    since, now, session = entry.kept_since, Clock.monotonic(), entry.session
    driver = entry.take()
    if driver is None:
        return False
    is_good = False
    try:
        if now < entry.expires_at:
            if session is not None:
                session.receive_reset(driver, since + RESET_TIMEOUT)
            is_good = _seems_alive(wrapper, driver, now - since)
    except (OSError, wrapper.Database.OperationalError):  # no answer, or no server
        pass
    except Exception as error:  # noqa: BLE001 - whatever it was, the connection is closed
        _give_up(wrapper.alias, error)
    if not is_good:
        wrapper.connection = driver
        entry.close(wrapper, dirty=False)
        return False
    if session is not None:
        session.restore(wrapper, driver)
    else:
        wrapper.connection = driver
    entry.begin_use()
    entry.holder.touch()
    entry.count("reset" if session is not None else "reused")
    return True


def _give_up(alias: str, why: Exception) -> None:
    """Never again reset a session of this alias in this process, and say so once."""
    if alias not in _not_reset:
        _not_reset.add(alias)
        log(
            logger,
            logging.WARNING,
            "alias=%(alias)s a session could not be reset: from now on its connections are closed "
            "instead",
            exc_info=why,
            alias=alias,
        )


def _seems_alive(wrapper: BaseDatabaseWrapper, driver: Any, idle: float) -> bool:
    """Look whether the server has hung up, by the socket; ask the server only if there is a doubt."""
    try:
        if idle < BYPASS_WINDOW and is_silent(driver):
            return True
        if hasattr(driver, "pgconn"):  # a firewall may have forgotten it: then there is no answer
            _send(driver, b"SELECT 1")
            _receive(driver, Clock.monotonic() + RESET_TIMEOUT)
            return True
        wrapper.connection = driver
        return wrapper.is_usable()
    except Exception:  # noqa: BLE001 - a driver in no state to tell
        return False


# Looks into a socket without a wait, and so without giving the interpreter's lock away as `select`
# does: with eight busy workers, getting it back costs more than all else between two tasks.
_recv: Any = None
try:
    _recv = ctypes.PyDLL(None, use_errno=True).recv
    _recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
except (AttributeError, OSError, TypeError):  # Windows
    pass
_byte = ctypes.create_string_buffer(1)  # nobody reads what is peeked at


def is_silent(driver: Any) -> bool:
    """Tell whether a driver's socket is open and has nothing to read; False where nobody can tell."""
    if not hasattr(driver, "fileno"):
        return hasattr(driver, "in_transaction")  # SQLite has no socket; of others nothing is known
    return (
        _recv is not None
        and _recv(driver.fileno(), _byte, 1, _PEEK) < 0
        and ctypes.get_errno() in (errno.EAGAIN, errno.EWOULDBLOCK)
    )


def _send(driver: Any, sql: bytes) -> None:
    """Send one statement, and do not wait.

    Raises:
        TimeoutError: another thread, or a suspended generator, uses the connection.
    """
    if not driver.lock.acquire(blocking=False):
        raise TimeoutError("the connection is in use")
    try:
        driver.pgconn.send_query(sql)
    finally:
        driver.lock.release()


def _receive(driver: Any, deadline: float) -> None:
    """Wait for the answer, until the deadline.

    Raises:
        OSError: there was none, or none that says anything of the statement.
        Exception: it was an error.
    """
    if not driver.lock.acquire(timeout=max(0.0, deadline - Clock.monotonic())):
        raise TimeoutError("the connection is in use")
    try:
        _results(driver.pgconn, deadline)
    finally:
        driver.lock.release()


def _results(pgconn: Any, deadline: float) -> None:
    pgconn.consume_input()  # most often all of it is there already
    while True:
        if pgconn.is_busy():
            unsent = pgconn.flush()
            _wait(pgconn.socket, select.POLLIN | (select.POLLOUT if unsent else 0), deadline)
            pgconn.consume_input()
            continue
        result = pgconn.get_result()
        if result is None:
            return
        if result.status not in (_COMMAND_OK, _TUPLES_OK):
            message = result.error_message.decode(errors="replace").strip()
            interfered = (result.error_field(_SQLSTATE) or b"").startswith(_INTERFERENCE)
            raise (ConnectionError if interfered else RuntimeError)(message)


def _wait(fileno: int, events: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(fileno, events)
    if not poll.poll(max(0.0, deadline - Clock.monotonic()) * 1000):
        raise TimeoutError("the server did not answer in time")
