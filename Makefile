# make demo | make test | make check | make help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# A CPU build of torch is enough. On Linux the default index carries the CUDA build (several GB); for the small one:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo test test-all check bench docs-errors clean

help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(READY) ## Make .venv and install uq4ct with the tested versions

$(READY): pyproject.toml constraints.txt
	@echo "Installing into .venv (two to five minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit("uq4ct needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch 2> .venv/install.log || { cat .venv/install.log; exit 1; }
	@$(PIP) install --constraint constraints.txt --editable '.[dev]' 2> .venv/install.log || { cat .venv/install.log; exit 1; }
	@touch $@
	@echo "Installed."

demo: $(READY) ## Fine-tune the bundled small model with LoRA, MixLoRA and UQ4CT; print the table; write demo/report.html
	@$(BIN)/uq4ct demo --output demo
	@echo "'. $(BIN)/activate' puts uq4ct on the path of this shell."

test: $(READY) ## Run the tests (a few minutes on 2 cores)
	@echo "Running the tests ..."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

test-all: $(READY) ## Run all tests, the slow ones included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY) ## Lint, check types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) ## Time and weigh the mixture beside plain LoRA; write docs/speed.md (25 minutes, best on a quiet machine)
	@$(BIN)/python -m benchmarks.speed

docs-errors: $(READY) ## Write docs/errors.md, the messages for bad input, from real runs
	@OMP_NUM_THREADS=1 $(BIN)/python docs/errors.py

clean: ## Remove the environment and the demo; your own runs stay
	rm -rf .venv demo build *.egg-info
