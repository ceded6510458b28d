"""Jobs of APScheduler that use the ORM."""

from apscheduler.executors.pool import BasePoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from django_executors import ThreadPoolExecutor, connection_scope
from tests.projects.testapp.models import Entry


# decorator: begin
@connection_scope
def delete_old_entries():
    Entry.objects.filter(name__startswith="old").delete()


def decorated_jobs():
    scheduler = BackgroundScheduler()
    scheduler.add_job(delete_old_entries, "interval", hours=1)
    return scheduler


# executor: begin
class DjangoThreads(BasePoolExecutor):
    def __init__(self, max_workers=10):
        super().__init__(ThreadPoolExecutor(max_workers))


def make_scheduler():
    return BackgroundScheduler(executors={"default": DjangoThreads()})


# end
