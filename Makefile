# Everything one does here. Each target first makes .venv fit this machine (tools/environment.py), in an instant when it does.
#   make PYTHON=python3.12 ...      another Python for .venv
#   make reproduce FULL=1           start the real run without asking, see README.md
#   make test PARTS="lint book"     only some parts of the tests
PYTHON ?= python3
BIN := .venv/bin
PAGES := _build/html/index.html

.PHONY: help environment reproduce test test-all test-gpu test-multi-gpu lint format book serve lab check-requirements clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 22

environment: ## create .venv and install what is pinned
	@$(PYTHON) tools/environment.py

reproduce: environment ## data, training, evaluation, samples and report, in the size that fits this machine
	$(BIN)/python -m gpt2edu.reproduce $(if $(FULL),--yes)

test: environment ## all checks that need no GPU, about ten minutes on two cores
	@$(BIN)/python tools/run_checks.py $(PARTS)

test-all: environment ## the same with the larger sweeps
	@$(BIN)/python tools/run_checks.py --slow $(PARTS)

test-gpu: environment ## the tests and the chapters' cells that need an NVIDIA GPU
	@$(BIN)/python tools/run_checks.py --gpu $(PARTS)

test-multi-gpu: environment ## the tests that need several NVIDIA GPUs, and their measured run; TEXT=shards/text adds 300 steps on that
	$(BIN)/python -m pytest tests -m multi_gpu
	$(BIN)/python -m gpt2edu.bench ranks $(if $(TEXT),-i "$(TEXT)_train_*.bin" -j "$(TEXT)_val_*.bin")

lint: environment ## style and notebook form
	@$(BIN)/python tools/run_checks.py lint

format: environment ## mend what lint finds, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python book/notebooks.py format --fix

book: environment ## build the book; warnings are errors
	@$(BIN)/python tools/run_checks.py book
	@echo "open $(PAGES)"

serve: book ## show the built book at http://localhost:8000
	$(BIN)/python -m http.server --directory $(dir $(PAGES)) --bind 127.0.0.1 8000

lab: environment ## run the chapters in JupyterLab
	@echo "from your own computer: ssh -L 8888:localhost:8888 $$(whoami)@$$(hostname)"
	cd book && ../$(BIN)/jupyter lab --no-browser --port 8888

check-requirements: environment ## resolve both requirements files; needed after a change to them
	$(BIN)/python tools/check_requirements.py

clean: ## remove everything that was built or installed here; data and runs stay
	rm -rf _build .venv *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
