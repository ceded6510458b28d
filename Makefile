# All of it is in tools/project.py, which needs no make: python3 tools/project.py demo
PYTHON ?= python3

.PHONY: help demo test docs clean

help:
	@echo "make demo   run the experiment on a private PostgreSQL"
	@echo "make test   run every check and test, on private servers"
	@echo "make docs   build the documentation into docs/_build"
	@echo "make clean  remove what these made"

demo test docs clean:
	@$(PYTHON) tools/project.py $@ $(ARGS)
