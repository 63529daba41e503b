# make reproduce   re-train and redraw the paper      (SCALE=laptop, ONLY="01" narrows, WORKERS=2)
# make publish     the same, into the committed outputs, once the code is committed
# make lab         JupyterLab, where a double click on notebooks/*.py opens a notebook
# make test        unit tests, and the smoke notebooks under nbval against an empty store
# make test-trust  the slow suite: 50 random kills, full and read-only disks, damaged files (TRUST_SEED=18: others)
# make report      the committed results as a static site in site/, no training (open site/index.html)
# make test-browser  the slow suite of the site and of JupyterLab: `playwright` (50 MB) into .venv; needs a chromium on the PATH
# make test-install  the slow suite: docs/colab.md in an empty environment outside the checkout
# make test-recipes  the slow suite of CONTRIBUTING.md: each worked example, followed on a copy of the project
# make test-ray    the slow suite: `ray` (250 MB) into .venv, then the Ray engine on simulated nodes, one killed mid-run
SCALE ?= laptop
ONLY ?=
WORKERS ?=
PYTHON ?= python3

.PHONY: help reproduce publish report lab test test-trust test-browser test-install test-recipes test-ray bench
help:
	@sed -n 's/^# //p' Makefile

reproduce: .venv/.ready
	.venv/bin/proxies run $(ONLY) --scale $(SCALE) $(if $(WORKERS),--workers $(WORKERS))

publish: .venv/.ready
	.venv/bin/proxies run $(ONLY) --scale $(SCALE) --publish $(if $(WORKERS),--workers $(WORKERS))

report: .venv/.ready
	.venv/bin/proxies report --published

lab: .venv/.ready
	.venv/bin/proxies lab

test: .venv/.ready
	.venv/bin/python -m pytest -n 2 --dist loadfile --durations=40 --durations-min=5

test-trust: .venv/.ready
	.venv/bin/python -m pytest tests/trust

test-browser: .venv/.ready
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,browser]'
	.venv/bin/python -m pytest tests/browser

test-install: .venv/.ready
	.venv/bin/python -m pytest tests/install

test-recipes: .venv/.ready
	.venv/bin/python -m pytest tests/recipes

test-ray: .venv/.ready
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,ray]'
	.venv/bin/python -m pytest tests/test_cluster.py

bench: .venv/.ready
	.venv/bin/proxies bench

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]' \
		|| { echo 'Not installed. Where a package has no wheel for this Python: make PYTHON=python3.13' >&2; exit 1; }
	touch $@
