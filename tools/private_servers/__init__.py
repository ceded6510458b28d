"""Private servers for the demo, the tests and the benchmarks.

Each server lives in a temporary folder, listens on a loopback port of its own and ends with the
process that started it, however that process ends. Nothing of the machine's own servers is
touched. The standard library only, so that nothing has to be installed to start one.

    with start_postgres(settings={"max_connections": "200"}) as server:
        DATABASES = {"default": django_database(server.url)}
"""

from .cache_servers import Memcached, Redis, start_memcached, start_redis
from .mariadb import MariaDB, find_mariadb, start_mariadb
from .pgbouncer import PgBouncer, find_pgbouncer, start_pgbouncer
from .postgres import Postgres, find_postgres, start_postgres
from .processes import MissingServer, ServerFailed
from .urls import django_database

__all__ = [
    "MariaDB",
    "Memcached",
    "MissingServer",
    "PgBouncer",
    "Postgres",
    "Redis",
    "ServerFailed",
    "django_database",
    "find_mariadb",
    "find_pgbouncer",
    "find_postgres",
    "start_mariadb",
    "start_memcached",
    "start_pgbouncer",
    "start_postgres",
    "start_redis",
]
