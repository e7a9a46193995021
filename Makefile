# make train   set up if needed, then the default experiment       make test    set up if needed, then the tests (JOBS=2)
# make setup   EXTRA=cpu (default) or gpu                           make check   ruff and pyright
# make gate    the learning gate                                    make accept  NAME=learning: an issue's acceptance lines
PYTHON ?= python3.11
EXTRA ?= cpu
JOBS ?= 2
READY := .venv/.ready-$(EXTRA)

.PHONY: setup train test check gate accept

setup: $(READY)

$(READY): pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh $(EXTRA)
	touch $@

train: $(READY)
	.venv/bin/python train.py +experiment=grpo_balanced

test: $(READY)
	.venv/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile

check: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

gate: $(READY)
	.venv/bin/python -m acceptance learning --only gate

accept: $(READY)
	.venv/bin/python -m acceptance $(NAME)
