"""Write the report on many sales, and say whether it is right, and which processes did it."""

import json
import os

import django

if __name__ == "__main__":
    django.setup()

    from django.db import connection

    from django_executors import executors
    from shop.models import Total
    from shop.reports import write_report
    from shop.seed import sow
    from tests.support.waiting import wait_until

    expected = sow(500)
    found = write_report()

    def clients_of_the_server():
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            return cursor.fetchone()[0]

    # A backend whose client is gone takes a moment to end.
    clients = wait_until(clients_of_the_server, lambda number: number == 1)
    elsewhere = executors["default"].submit(os.getpid).result() != os.getpid()
    executors.shutdown()
    rows = Total.objects.count()
    print(
        json.dumps(
            {"right": found == expected, "rows": rows, "clients": clients, "elsewhere": elsewhere}
        )
    )
