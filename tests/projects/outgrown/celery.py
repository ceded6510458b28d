"""Celery's app."""

# app: begin
from celery import Celery

app = Celery("outgrown", include=["tests.projects.outgrown.jobs"])
app.config_from_object("django.conf:settings", namespace="CELERY")
