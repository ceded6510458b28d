"""The page: start it, open it in a browser, raise some prices, stop it with Ctrl-C.

    python demo/serve.py [ADDRESS:PORT]

Without DATABASE_URL it starts a PostgreSQL of its own, which goes when this ends.
"""

import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "tools"))

from private_servers import start_postgres

SALES = 20_000


def main(arguments: list[str]) -> None:
    with contextlib.ExitStack() as servers:
        if "DATABASE_URL" not in os.environ:
            os.environ["DATABASE_URL"] = servers.enter_context(start_postgres()).url
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"

        import django
        from django.core.management import call_command
        from django.db import connections

        django.setup()
        call_command("migrate", verbosity=0)
        from shop.models import Sale
        from shop.seed import sow

        if not Sale.objects.exists():
            sow(SALES)
        connections.close_all()
        call_command("runserver", *arguments, use_reloader=False)


if __name__ == "__main__":
    main(sys.argv[1:])
