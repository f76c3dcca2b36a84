# make book     compute everything, build the book; with PRESET=smoke, numbers that mean nothing, in
#               minutes; with FROM=published, compute nothing: the published tables alone
# make pdf      the book that make book built, as one PDF (needs Chromium)
# make test     style and imports, unit tests, then every notebook, then the built book
# make publish  make book, then refresh the pages and the figure that are made from tables
# make bench    how fast it is, beside the textbook loop and what the machine can do
# make clean    remove what was built (not what was computed, nor .venv)
# make help     this list

# python3, or else the newest that fits
FITS = -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
    $$p $(FITS) && echo $$p && break; done)
BROWSER ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
BIN = .venv/bin
# Written last, so that a half-made .venv is never taken for a finished one.
INSTALLED = .venv/.installed

# The trainings are small: one thread each, and as many processes as are useful.
export OMP_NUM_THREADS = 1
# A test often waits for a program that it started: three of them keep two cores at work.
PYTEST = $(BIN)/pytest -q -n 3

.PHONY: book pdf test publish bench clean help

book: $(INSTALLED)
	$(BIN)/python book/build.py $(if $(FROM),--from $(FROM)) $(if $(PRESET),--preset $(PRESET))

ONE = build/_build/singlehtml
pdf: $(INSTALLED)
	@test -d build/src || { echo "unmask: no book yet: make book"; exit 1; } >&2
	@test "$(BROWSER)" || { echo "unmask: no Chromium found; on Debian: apt-get install chromium"; exit 1; } >&2
	$(BIN)/jupyter-book build build/src --path-output build --builder custom --custom-builder singlehtml -q
	cp $(ONE)/book/intro.html $(ONE)/one.html # from where its links lead to its figures
	$(BROWSER) --headless --no-sandbox --disable-gpu --log-level=3 --user-data-dir=build/browser --no-pdf-header-footer \
	    --virtual-time-budget=100000 --print-to-pdf=build/_build/html/unmask.pdf $(ONE)/one.html

publish: $(INSTALLED)
	$(BIN)/python book/build.py --publish

# The notebooks find in the store what `unmask run` computed, with a progress bar. Those that
# compute nothing are executed once, for the book.
test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(PYTEST) --dist loadgroup tests --ignore tests/test_built_book.py
	$(BIN)/unmask run miniature_short
	PYTHONPATH=tests $(PYTEST) -p nbval_sockets --dist loadfile --nbval-lax --nbval-current-env \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg \
	    --ignore-glob 'notebooks/0[789]_*' notebooks book/claims.ipynb
	$(BIN)/python book/build.py
	$(PYTEST) tests/test_built_book.py

bench: $(INSTALLED)
	$(BIN)/python bench/bench.py $(BENCH)

clean:
	rm -rf build

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@test "$(PYTHON)" && $(PYTHON) $(FITS) \
	    || { echo "unmask: Python 3.10 to 3.14 is needed; name one with 'make PYTHON=python3.12 ...', or bring one: uv python install 3.13"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "unmask: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	@echo "Installing into .venv: about $(if $(TORCH),2,6) GB, some minutes"
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(BIN)/pip install -q --disable-pip-version-check uv)
	$(if $(TORCH),$(BIN)/uv pip install -q -p .venv --torch-backend=$(TORCH) -c constraints.txt torch torchvision)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
