"""The project of `docs/outgrowing.md`: the same tasks on one backend after another."""
