"""A small project whose tests leave work to real workers."""
