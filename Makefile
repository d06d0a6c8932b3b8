# Each target sets up all it needs, also on a bare Debian 12 as root.
#
#   make run     an engine, an image, a demo project, and TazPod in it;
#                without a terminal, the same walk by itself (tests/demo);
#                ENGINE=podman, or rootless: Podman of a user who is not root
#   make test    all tests, on Docker; ARGS='-k vault' is handed to pytest
#   make engines what touches the engine, on Podman with root and without, and
#                on Docker with the storage driver vfs
#   make walk    a random walk with faults, ten minutes of it, on an engine of its
#                own; ENGINE=podman; ARGS='--seed N --steps N', see tests/walk/__main__.py
#   make check   ruff and mypy
#   make man     docs/tazpod.1, from the tables that --help is made from
#   make audit   docs/audit.md, from the builders of the calls
#   make release dist/tazpod.pyz: one file, with the libraries in it, for hosts
#                where nothing can be installed
#   make clean   stop the private engine, remove what was made in this folder

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: run test engines walk check man clean audit release
.DEFAULT_GOAL := run

IMAGE = tazzo/tazpod-ai:latest
TEST_IMAGE = tazpod-test:slim
TEST_FULL_IMAGE = tazpod-test:latest

ENGINE = docker

PYTEST = .venv/bin/python -m pytest -p no:cacheprovider
# Beside another run on the same machine, from which it must not take pytest's folders away.
ASIDE = --basetemp=/tmp/tazpod-tests-
ON_PODMAN = tests/test_engine.py tests/test_sessions.py tests/test_container.py tests/test_daemon.py \
    tests/test_canary.py tests/test_dry_run.py tests/test_operator.py tests/test_pod.py
ON_ROOTLESS = tests/test_sessions.py tests/test_container.py tests/test_canary.py
WALK = tests/test_engine.py::test_from_an_empty_folder_to_a_locked_vault_and_back

run: .venv/ready
	tests/engine image $(ENGINE) $(IMAGE)
	tests/engine with $(ENGINE) tests/demo .venv/bin/tazpod

test: .venv/ready
	tests/engine need gpg openssl tar tmux git gcc sudo unshare=util-linux ip=iproute2 \
	    zsh fish groff=groff-base ssh-agent=openssh-client dropbear=dropbear-bin
	tests/engine image docker $(TEST_IMAGE) aws
	tests/engine image docker $(TEST_FULL_IMAGE)
	tests/engine with docker env TAZPOD_TEST_IMAGE=$(TEST_IMAGE) TAZPOD_TEST_FULL_IMAGE=$(TEST_FULL_IMAGE) \
	    .venv/bin/python -m pytest $(ARGS)

engines: .venv/ready
	tests/engine need gpg sudo unshare=util-linux ip=iproute2 ssh-agent=openssh-client
	export TAZPOD_TEST_IMAGE=$(TEST_IMAGE) TAZPOD_TEST_FULL_IMAGE=$(TEST_FULL_IMAGE)
	for engine in podman rootless vfs; do tests/engine image $$engine $(TEST_IMAGE) aws; done
	tests/engine with vfs $(PYTEST) $(ASIDE)vfs $(WALK)
	tests/engine with rootless $(PYTEST) $(ASIDE)rootless $(WALK) $(ON_ROOTLESS)
	tests/engine with podman $(PYTEST) $(ASIDE)podman -m engine -k "not full_image" $(ON_PODMAN)

walk: .venv/ready
	tests/engine need gpg ip=iproute2
	tests/engine image $(ENGINE) $(TEST_IMAGE) aws
	tests/engine with $(ENGINE) env TAZPOD_TEST_IMAGE=$(TEST_IMAGE) \
	    .venv/bin/python tests/walk --engine $(ENGINE) --faults $(ARGS)

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict tazpod.py

man: .venv/ready
	.venv/bin/python docs/man >docs/tazpod.1.new
	mv docs/tazpod.1.new docs/tazpod.1

audit: .venv/ready
	.venv/bin/python docs/audit >docs/audit.md.new
	mv docs/audit.md.new docs/audit.md

# All times in it are the last commit's, so that the same sources give the same bytes.
release: .venv/ready
	mkdir -p dist
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 0)} \
	    .venv/bin/python tests/release dist/tazpod.pyz
	sha256sum dist/tazpod.pyz

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
