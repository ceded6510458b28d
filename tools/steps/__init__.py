"""The steps behind `tools/project.py`; the standard library only."""
