"""What django-stubs' plugin asks for."""

SECRET_KEY = "of the type checker"
