# Every target sets up what it needs, on a machine that has only Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
WORKERS ?= auto
RESULTS ?= bench-gpu.json
# One thread for each test process: the tests run side by side.
TEST = OMP_NUM_THREADS=1 $(RUN)/pytest -n $(WORKERS)

.PHONY: setup demo test slow browser processors golden tutorials lint docs bench bench-gpu lock clean

setup: $(VENV)/.done

$(VENV)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: polymodal needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check uv
	$(RUN)/uv pip install --quiet --python $(RUN)/python --require-hashes -r requirements.lock
	$(RUN)/uv pip install --quiet --python $(RUN)/python --no-deps -e .
	@touch $@

demo: setup ## pack, pretrain CLIP, GPT-2 and BERT, classify, kill and resume, report: under 5 minutes on 2 cores
	$(RUN)/polymodal demo --out demo-out

test: setup ## the fast tests
	$(TEST) -m "not slow and not browser"

slow: setup ## the deeper tests that .ci/run also runs
	$(TEST) -m "slow and not browser"

browser: setup ## the demo's page and the documentation in Chromium, which must be installed
	$(TEST) -m browser

processors: setup ## what rounds differently on other processors, with torch's plain kernels and with those for AVX2
	for level in default avx2; do ATEN_CPU_CAPABILITY=$$level $(TEST) -m "not slow and not browser" \
	  tests/golden tests/shared/attention tests/pipelines/model/test_quantize.py tests/contract/test_checks.py || exit 1; done

golden: setup ## record the loss curve of every tiny system again, and say which ones moved
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN)/python -m golden.record

tutorials: setup ## run the tutorials (PAGES=texts: one of them) and write what their commands print into the pages
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(RUN)/python -m tutorials $(PAGES)

lint: setup
	$(RUN)/ruff check .
	$(RUN)/pyright --pythonpath $(RUN)/python

docs: setup ## write the pages that are read off the code, then build the site into site/, without a network
	$(RUN)/python -m polymodal.pipelines.cards.cards docs
	$(RUN)/python examples/draw_masks.py docs
	$(RUN)/python examples/plot_results.py docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

bench: setup ## measured beside the peers on this machine
	$(RUN)/polymodal bench --json

bench-gpu: setup ## on a CUDA machine, under 9 minutes: numerics of every attention backend, then speed beside the peers
	$(RUN)/polymodal bench gpu --seconds 440 --repetitions 3 --out $(RESULTS) --json

lock: ## resolve requirements.lock again
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev --quiet \
	  --custom-compile-command "make lock" -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache demo-out
