"""How fast the executors are, beside the alternatives, each file one part of it.

`contestants` are put through `workloads` on `servers`: `cell` measures one of them once, `rounds`
interleaves them, `ratios` compares. `flat` and `memory` measure the rest. `targets` says what must be
reached, `report` and `picture` show it. `run.py` is the command.
"""
