# Two commands for a newcomer: `make demo` and `make test`. Each builds .venv by itself; all it needs is Python 3.11.
PYTHON ?= python3.11
EXTRA ?= cpu
SERVE ?= 1
JOBS ?= 3
DEMO_DIR ?= demo
export OMP_NUM_THREADS ?= 2
# tests start hundreds of processes: what each imports is compiled once, and not by each, which takes 3 s of CPU
unexport PYTHONDONTWRITEBYTECODE
# the real catalogues and images, when they lie beside the checkout
ifneq ($(wildcard ../shared/data/README.md),)
export REDSHELF_DATA ?= $(abspath ../shared/data)
endif
BIN := .venv/bin
# the modules of the tests go to JOBS processes, the longest first; one thread each is quicker than two that share a core,
# and three processes than two on two cores, since a third of the time they wait
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
STAMP := .venv/.installed-$(EXTRA)

.PHONY: venv demo test offline check coverage mutants docs format bench torture release screenshots clean

venv: $(STAMP)

# --clear: faiss-cpu and faiss-gpu never share an environment; --no-compile: Python does it for what is imported
$(STAMP): pyproject.toml deploy/lock-$(EXTRA).txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --no-compile -c deploy/lock-$(EXTRA).txt -e ".[$(EXTRA),sim,ray,otel,dev,docs]"
	touch $@

demo: venv
	$(BIN)/redshelf demo --dir $(DEMO_DIR) $(if $(filter 0,$(SERVE)),--no-serve,)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" -p no:cacheprovider

test: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -ra $(SELECT)

# the same where there is no network but loopback: what tries to leave is counted, and one try is a fault. Two kinds of
# tests come by themselves: Ray asks 8.8.8.8 for the address that it has, Chromium whether there is IPv6
offline: venv
	tests/offline.sh $(MAKE) test SELECT='-m "not ray and not browser"'
	OFFLINE_TRIES=1000 tests/offline.sh env $(PYTEST) -ra -m "ray or browser" $$(grep -lE "mark\.(ray|browser)" tests/test_*.py)

# the share of lines that the tests run, in their processes too, where these are not killed
coverage: venv
	$(PYTEST) -W ignore --cov --cov-report=term-missing

# whether tests notice small changes of what numbers rest on; what they do not lies in build/mutants
mutants: venv
	JOBS=$(JOBS) tests/mutants.sh

# the site lies in build/site; a warning, such as a link that leads nowhere, ends it
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv
	$(BIN)/python benchmarks/real_zcosmos.py
	$(BIN)/python benchmarks/boost_quantiles.py
	$(BIN)/python benchmarks/clap_knn.py
	$(BIN)/python benchmarks/shift.py
	$(BIN)/python benchmarks/redshift.py
	$(BIN)/python benchmarks/targets.py
	$(BIN)/python benchmarks/real_hsc.py
	$(BIN)/python benchmarks/retrieval.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/questions.py
	$(BIN)/python benchmarks/cone.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/map.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/study.py

# full counts of kills and fuzz cases, which `test` runs in small
torture: venv
	REDSHELF_TORTURE=1 $(BIN)/pytest -q -ra

# what is published: wheel, source, what an installation is made of (CycloneDX), its licences; known faults of it, where
# the network of PyPI's advisories is in reach
release: venv
	rm -rf dist .venv/release && $(PYTHON) -m venv .venv/release
	.venv/release/bin/python -m pip install --quiet build cyclonedx-bom pip-licenses pip-audit
	SOURCE_DATE_EPOCH=315532800 .venv/release/bin/python -m build --outdir dist .
	.venv/release/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json
	.venv/release/bin/pip-licenses --python $(BIN)/python --format csv --with-urls --output-file dist/licences.csv
	-.venv/release/bin/pip-audit --requirement deploy/lock-$(EXTRA).txt --no-deps --disable-pip --output dist/audit.txt
	(cd dist && sha256sum redshelf-*) >dist/SHA256SUMS

# the pictures of docs/pages, of the demo's shelf
screenshots: venv
	test -d $(DEMO_DIR)/shelf/generations || $(BIN)/redshelf demo --dir $(DEMO_DIR) --no-serve
	PYTHONPATH=tests/links $(BIN)/python docs/screenshots.py $(DEMO_DIR)/shelf

clean:
	rm -rf .venv build dist redshelf.egg-info .pytest_cache .mypy_cache .ruff_cache
