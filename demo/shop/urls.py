"""One page, and what it asks for."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.page, name="page"),
    path("jobs/<int:number>/", views.page, name="job"),
    path("jobs/<int:number>/state", views.state, name="state"),
]
