"""The cells of a notebook. A test runs them, one by one, in a kernel of Jupyter."""
# ruff: noqa: E402, F704

# %% set up
import os

os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"

import django

django.setup()

# %% query
from django_executors import ThreadPoolExecutor, connection_scope
from tests.projects.testapp.models import Entry

with connection_scope():
    names = list(Entry.objects.values_list("name", flat=True))


# %% submit
def count(name):
    return Entry.objects.filter(name=name).count()


with ThreadPoolExecutor(4) as pool:
    counts = dict(zip(names, pool.map(count, names), strict=True))

# %% await
with ThreadPoolExecutor(4) as pool:
    total = await pool.submit(Entry.objects.count)

# %% end
