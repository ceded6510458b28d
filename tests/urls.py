"""No URLs: sites for servers have modules of their own."""

urlpatterns: list[object] = []
