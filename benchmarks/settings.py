"""The settings of the benchmark's project: its processes have them too.

`django_executors` is no installed app, as in the demo: with it every thread closes its connections when
it ends, those of the leaking pool too.
"""

import os

# Workers of a cluster have the password from here: it is not sent to them.
DATABASES: dict[str, dict[str, object]] = {
    "default": {"PASSWORD": os.environ.get("BENCHMARK_PASSWORD", "")}
}
INSTALLED_APPS: list[str] = []
USE_TZ = True
