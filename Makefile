# make demo    a cluster on this machine trains a network on real data
# make test    every test
# make quick   the tests that take seconds, without a Docker engine
# make check   lint, format, types, floors, stubs and reference up to date
# make protos  regenerate the stubs      make docs   regenerate the reference
# make bench   the committed benchmark   make examples   run every example
# make compare schemes side by side on one script, with a straggler: the picture in docs
# make chaos   jobs under 200 seeded schedules of faults   make simulation   10,000 in virtual time
# make fuzz    garbage for five minutes to each reader of others' bytes
# make clean   remove what the targets above made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The stubs come from the oldest supported generator, which has no place beside the newest gRPC.
PROTOC_VENV ?= .venv-protos
PROTOC_VERSION := 1.72.1
PROTOC_INSTALLED := $(PROTOC_VENV)/.installed-$(PROTOC_VERSION)
PROTOC := $(PROTOC_VENV)/bin/python -m grpc_tools.protoc
PROTOS := $(wildcard protos/paramserver/v1/*.proto)
STUBS := src/paramserver/v1

.PHONY: help demo test quick check lint types floors check-protos check-docs protos docs bench compare examples chaos simulation fuzz install clean

help:
	@sed -n 's/^# //p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,examples]'
	touch $@

$(PROTOC_INSTALLED):
	test -x $(PROTOC_VENV)/bin/python || $(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip install --quiet grpcio-tools==$(PROTOC_VERSION)
	touch $@

demo: $(INSTALLED)
	$(BIN)/paramserver run -s 2 -w 4 examples/digits.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

quick: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not slow and not docker'

check: lint types floors check-protos check-docs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

floors: $(INSTALLED)
	$(BIN)/lint-imports --no-logo

check-protos: $(PROTOC_INSTALLED)
	rm -rf build/protos && mkdir -p build/protos
	$(PROTOC) -Iprotos --python_out=build/protos --pyi_out=build/protos --grpc_python_out=build/protos $(PROTOS)
	diff -r --exclude=__init__.py --exclude=__pycache__ build/protos/paramserver/v1 $(STUBS) \
		|| { echo 'the stubs are out of date: make protos'; exit 1; }

check-docs: $(INSTALLED)
	$(BIN)/python docs/generate.py --check

protos: $(PROTOC_INSTALLED)
	$(PROTOC) -Iprotos --python_out=src --pyi_out=src --grpc_python_out=src $(PROTOS)

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

bench: $(INSTALLED)
	mkdir -p build
	$(BIN)/paramserver bench all --json build/bench.json
	$(BIN)/python benchmarks/report.py build/bench.json

SCHEMES := sync/round-robin,sync:backup=1,sync/dynamic/balance,stale:4,adaptive:8,async/dynamic,local:10

compare: $(INSTALLED)
	$(BIN)/paramserver compare -s 2 -w 4 --schemes $(SCHEMES) --budget-samples 12000 \
		--target accuracy=0.95 --sample-time 0.002 --straggler 5 \
		--json build/compare/results.json examples/compare.py
	$(BIN)/python benchmarks/schemes.py build/compare/results.json

examples: $(INSTALLED)
	$(BIN)/paramserver run -s 2 -w 4 examples/digits.py
	$(BIN)/paramserver run -s 1 -w 2 examples/by_hand.py
	$(BIN)/paramserver run -s 2 -w 2 examples/char_lm.py
	$(BIN)/paramserver run -s 1 -w 3 --parties 3 examples/vertical.py
	$(BIN)/paramserver run -s 1 -w 3 examples/allreduce.py
	$(BIN)/paramserver run -s 2 -w 4 examples/diloco.py
	$(BIN)/paramserver run -s 2 -w 4 examples/downpour.py
	$(BIN)/paramserver run -s 2 -w 3 examples/lbfgs.py
	$(BIN)/paramserver run -s 1 -w 4 examples/straggler.py
	$(BIN)/paramserver run -s 1 -w 2 --scheme stale:2 examples/compare.py --epochs 8
	$(BIN)/paramserver run -s 2 -w 2 examples/words.py
	$(BIN)/paramserver run -s 2 -w 2 examples/wide_and_deep.py --synthetic

chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos --seeds 200

simulation: $(INSTALLED)
	$(BIN)/python -m tests.simulation --schedules 10000

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz --seconds 300

clean:
	rm -rf $(VENV) $(PROTOC_VENV) build dist *.egg-info src/*.egg-info \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
