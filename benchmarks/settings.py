"""The settings of the benchmark's project: its processes have them too.

`django_executors` is no installed app, as in the demo: with it every thread closes its connections when
it ends, those of the leaking pool too.
"""

DATABASES: dict[str, dict[str, object]] = {"default": {}}
INSTALLED_APPS: list[str] = []
USE_TZ = True
