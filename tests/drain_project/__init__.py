"""A small project whose tests leave work to real workers. tests/test_drain_project.py runs them."""
