# make demo   raw text -> shards -> a trained model that writes, on this machine, in a few minutes
# make test   the tests; make test-long the slow ones; make test-ray those that need the extra `ray`
# make test-readers   other programs' readers, installed into .readers, on our shards
# make test-torch TORCH=2.15.0   the trainer's tests, long ones too, on another torch, in .torch-2.15.0
# make fuzz   five minutes of random texts and vocabularies through our tokenizer and sentencepiece
PYTHON ?= python3
BIN := .venv/bin
MIX := slimpajama:0.7,starcoder:0.3
DEMO_DATA := data/demo
DEMO_RUN := runs/make-demo
TORCH := 2.11.0
TRAINER_TESTS := $(wildcard tests/test_train_*.py) tests/test_model.py tests/test_attention.py

.PHONY: demo test test-long test-ray test-readers test-torch lint clean fuzz

demo: .venv/installed
	$(BIN)/python pipeline/build.py --mix $(MIX) --sample-mb 20 --out $(DEMO_DATA)
	$(BIN)/python pipeline/verify.py $(DEMO_DATA)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 train/main.py --recipe demo --data $(DEMO_DATA) --out $(DEMO_RUN) --device cpu
	$(BIN)/python train/generate.py $(DEMO_RUN)
	$(BIN)/python pipeline/summary.py $(DEMO_DATA)
	$(BIN)/python train/plot.py $(DEMO_RUN) --out $(DEMO_RUN)/loss.png --require-fall 0.8

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --dist worksteal

test-long: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2 --dist worksteal

test-ray: .venv/installed-ray
	$(BIN)/python -m pytest tests/test_ray.py

test-readers: .readers/installed
	PYTHONPATH=.readers $(BIN)/python -m pytest -rs tests/test_other_readers.py

test-torch: .torch-$(TORCH)/installed
	OMP_NUM_THREADS=1 .torch-$(TORCH)/bin/python -m pytest -n 2 --dist worksteal $(TRAINER_TESTS)

fuzz: .venv/installed
	$(BIN)/python tests/fuzz_spm.py --seconds 300

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made again when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-ray: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

# Several gigabytes, where that torch is a build for CUDA.
.torch-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	sed 's/^torch==.*/torch==$*/' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -c $(@D)/constraints.txt -e '.[dev]'
	touch $@

# One that cannot be installed is said and left out, and its tests are skipped.
INSTALL_READERS := $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --upgrade --no-deps --no-compile --target .readers
.readers/installed: .venv/installed tests/other_readers.txt
	mkdir -p .readers
	$(INSTALL_READERS) -r tests/other_readers.txt || for package in $$(grep -v '^#' tests/other_readers.txt); do \
		$(INSTALL_READERS) $$package || echo "$$package cannot be installed here: the tests that need it are skipped"; \
	done
	touch $@

clean:
	rm -rf .venv .torch-* .readers data/demo data/sample-20mb $(DEMO_RUN)
