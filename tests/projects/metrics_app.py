"""An app of a project, which registers the metrics."""

from __future__ import annotations

# prometheus: begin
from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self) -> None:
        from django_executors.metrics import prometheus

        prometheus.register()


# opentelemetry: begin
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from django_executors.metrics import opentelemetry

reader = PeriodicExportingMetricReader(ConsoleMetricExporter())
metrics.set_meter_provider(MeterProvider([reader]))
opentelemetry.instrument()
# end
