"""A program of each framework that has threads, as `docs/frameworks.md` shows it."""
