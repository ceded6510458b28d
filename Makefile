# All of it is in tools/project.py, which needs no make: python3 tools/project.py demo
PYTHON ?= python3

.PHONY: help demo site test mutations bench docs clean

help:
	@echo "make demo   run the experiment on a private PostgreSQL"
	@echo "make site   serve a page on which a form starts a job (ARGS=8080: another port)"
	@echo "make test   run every check and test, on private servers (ARGS=--fast: what takes a minute)"
	@echo "make mutations  break the code in sixty places, and see that the tests notice (half an hour)"
	@echo "make bench  measure the speed beside the alternatives (half an hour; ARGS=--quick: a minute)"
	@echo "make docs   build the documentation into docs/_build"
	@echo "make clean  remove what these made"

demo site test mutations bench docs clean:
	@$(PYTHON) tools/project.py $@ $(ARGS)
