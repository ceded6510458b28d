"""A small project whose own tests use `run_inline`: tests/test_run_inline.py runs them."""
