# gunicorn.conf.py
def post_fork(server, worker):
    from django_executors.metrics import prometheus

    prometheus.register()


def child_exit(server, worker):
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)
