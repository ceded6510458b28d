"""Functions that use the ORM, run by joblib."""

import django
from joblib import Parallel, delayed

from django_executors import connection_scope
from tests.projects.testapp.models import Entry


# threads: begin
@connection_scope
def count(prefix):
    return Entry.objects.filter(name__startswith=prefix).count()


def count_all(prefixes):
    return Parallel(n_jobs=4, backend="threading")(delayed(count)(prefix) for prefix in prefixes)


# processes: begin
def count_all_in_processes(prefixes):
    parallel = Parallel(n_jobs=2, backend="loky", initializer=django.setup)
    return parallel(delayed(count)(prefix) for prefix in prefixes)


# end
