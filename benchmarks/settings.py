"""The settings of the benchmark's project: its processes have them too.

`django_executors` is no installed app, as in the demo: with it every thread closes its connections when
it ends, those of the leaking pool too.
"""

import json
import os

# A worker process is told where the database is, and has the rest from here.
DATABASES: dict[str, dict[str, object]] = {
    "default": json.loads(os.environ.get("BENCHMARK_DATABASE", "{}"))
}
INSTALLED_APPS: list[str] = []
USE_TZ = True
