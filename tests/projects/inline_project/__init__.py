"""A small project whose own tests use `run_inline`: tests/django/test_testing.py runs them."""
