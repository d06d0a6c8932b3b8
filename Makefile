# Each target sets up all it needs, also on a bare Debian 12 as root.
#
#   make run     an engine, an image, a demo project, and TazPod in it;
#                without a terminal, the same walk by itself (tests/demo)
#   make test    all tests; ARGS='-k vault' is handed to pytest
#   make check   ruff and mypy
#   make man     docs/tazpod.1, from the tables that --help is made from
#   make clean   stop the private engine, remove what was made in this folder

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: run test check man clean
.DEFAULT_GOAL := run

DEMO = $${TAZPOD_DEMO:-$$HOME/tazpod-demo}
IMAGE = tazzo/tazpod-ai:latest
TEST_IMAGE = tazpod-test:slim
TEST_FULL_IMAGE = tazpod-test:latest

# Not eval "$$(...)": that would go on when the engine does not start.
ENGINE = engine=$$(tests/engine up); eval "$$engine"

run: .venv/ready
	$(ENGINE)
	docker image inspect $(IMAGE) >/dev/null 2>&1 || docker pull $(IMAGE) ||
	    tests/engine image $(IMAGE)
	if ! [ -t 0 ] || ! [ -t 1 ]; then exec tests/demo .venv/bin/tazpod; fi
	tazpod=$$PWD/.venv/bin/tazpod
	mkdir -p "$(DEMO)"
	cd "$(DEMO)"
	[ -e .tazpod ] || "$$tazpod" init
	"$$tazpod" || echo "make run: the session ended with status $$?"

test: .venv/ready
	tests/engine need gpg openssl tar tmux git sudo unshare=util-linux ip=iproute2 \
	    zsh fish groff=groff-base ssh-agent=openssh-client dropbear=dropbear-bin
	$(ENGINE)
	tests/engine image $(TEST_IMAGE) aws
	tests/engine image $(TEST_FULL_IMAGE)
	TAZPOD_TEST_IMAGE=$(TEST_IMAGE) TAZPOD_TEST_FULL_IMAGE=$(TEST_FULL_IMAGE) \
	    .venv/bin/python -m pytest $(ARGS)

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict tazpod.py

man: .venv/ready
	.venv/bin/python docs/man >docs/tazpod.1.new
	mv docs/tazpod.1.new docs/tazpod.1

clean:
	tests/engine down
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# Debian's python3 comes without what makes a venv.
.venv/ready: pyproject.toml
	tests/engine need python3
	python3 -c 'import ensurepip' 2>/dev/null || tests/engine need python3-venv
	python3 -m venv .venv
	.venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	touch $@
