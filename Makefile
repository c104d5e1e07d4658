# `make demo` and `make test` do all of their own set-up; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow check lock

demo: $(STAMP)
	@$(BIN)/bitsmith run pipelines/recipes/demo.yaml

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pipelines.code_id --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadgroup

test-slow: $(STAMP)
	$(BIN)/pytest -q -m slow --timeout=3600

lock: $(STAMP)
	$(BIN)/python -m pipelines.code_id --update

# uv installs everything in seconds where pip needs minutes. Handing pip's find-links on lets a torch wheel that is
# already on this machine serve; elsewhere the variable is empty and nothing changes. Compiled bytecode halves the
# start of every process.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	@UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[test]'
	@touch $@
