"""The demo's report on one executor after another, for `docs/cluster.md`."""
