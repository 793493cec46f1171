# `make train` and `make test` need Python 3.11 or 3.12 and nothing else; what is installed or prepared once is kept.
PYTHON ?= python3
VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
# The second environment: the same package on today's TorchTitan.
CURRENT := VENV=.venv-current LOCK=requirements-current.lock
# The third one: the default's TorchTitan, and its one need that the second has not, on the second's torch.
NEWEST := VENV=.venv-newest LOCK=build/newest.lock
TEST_CURRENT := .venv-current/bin/python -m pytest -n 2 --dist loadfile tests/titan tests/test_train.py tests/test_layouts.py \
	tests/test_layout_checks.py tests/test_train_job.py tests/use/test_export_import.py \
	tests/use/test_export_slow.py tests/cli/test_init.py tests/report/test_recorder.py

.PHONY: train test test-all test-launch slurm browser stores lint format install wheel lock clean gpu-bundle train-current test-current \
	test-newest

CONFIGS := examples/mosaic_photon/configs
TRAINED := outputs/make_train

train: install data/stdlib/prepare.json
	rm -rf $(TRAINED)
	$(BIN)/torchrun --nproc_per_node=1 -m examples.mosaic_photon.train_with_mosaic --config $(CONFIGS)/mosaic_job.toml \
		--mosaic-config $(CONFIGS)/mosaic_dataloader.toml -- --checkpoint.enable=true --job.dump_folder=$(TRAINED)
	@echo "text from it: $(BIN)/mosaic-photon generate $(TRAINED)/checkpoint --job $(CONFIGS)/mosaic_job.toml --prompt 'def main():'"

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not launch"

test-all: lint browser stores test-launch test-current test-newest
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not launch"
	$(TEST_CURRENT) -m slow

train-current:
	$(MAKE) train $(CURRENT)

test-current:
	$(MAKE) install $(CURRENT)
	$(TEST_CURRENT) -m "not slow"

test-newest: build/newest.lock
	$(MAKE) install $(NEWEST)
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" tests/titan tests/test_train.py tests/test_layouts.py \
		tests/checkpoints tests/compat tests/models tests/mup tests/optimizers tests/schedulers tests/train

build/newest.lock: requirements.lock requirements-current.lock
	@mkdir -p build
	awk '/^[^ ]/ {is_its = $$1 ~ /^(torchtitan|tomli)==/; take = FNR == NR ? !is_its : is_its} take' \
		requirements-current.lock requirements.lock > $@

# The launch recipes of docs/launch.md on a real Slurm cluster and under torchrun's restarts; as root, on Debian.
test-launch: install slurm build/manifests/installed
	$(BIN)/python -m pytest -m launch

slurm:
	@command -v slurmctld >/dev/null || PATH="$$PATH:/usr/sbin" command -v slurmctld >/dev/null || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; }

# What looks at the page of `mosaic-photon report`, in `make test-all`; as root, on Debian.
browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver; }

# Clients and emulators of Google's and Azure's stores, in `make test-all`. Azure's is for Node.js, which Debian has.
stores: build/stores/installed

build/stores/installed: | $(VENV)/installed
	@command -v npm >/dev/null || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends npm; }
	@mkdir -p build
	sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' $(LOCK) > build/locked.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target build/stores --constraint build/locked.txt \
		gcsfs==2025.12.0 adlfs==2026.8.0 gcp-storage-emulator==2026.7.19
	npm install --silent --no-audit --no-fund --prefix build/stores azurite@3.37.0
	touch $@

build/manifests/installed: | $(VENV)/installed
	$(BIN)/uv venv --quiet --clear build/manifests
	$(BIN)/uv pip install --quiet --python build/manifests/bin/python kubernetes-validate==1.37.0 skypilot==0.14.1
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

$(VENV)/installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "$(PYTHON) is not Python 3.11 or 3.12; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --no-config --python $(BIN)/python --compile-bytecode --require-hashes --no-deps -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	touch $@

wheel: install
	$(BIN)/python -m hatchling build -t wheel

data/stdlib/prepare.json: | $(VENV)/installed
	$(BIN)/mosaic-photon prepare --out data/stdlib --tokenizer tests/assets/tokenizer --seq-len 256

# What a bare GPU machine needs to run benchmarks/gpu_suite.py; its Python is GPU_PYTHON.
GPU_PYTHON ?= 3.12
gpu-bundle: install
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.bundle --python $(GPU_PYTHON)

COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-annotate --quiet \
	--custom-compile-command "make lock"
LOCKED = $(COMPILE) pyproject.toml --group dev --group foundry --generate-hashes

# Both environments, and the list that a wheel has: the first one's without torch, TorchTitan and what develops.
lock: install
	$(LOCKED) --extra titan02 --output-file requirements.lock
	@mkdir -p build
	$(BIN)/python -c 'import pathlib, tomllib; tool = tomllib.load(open("pyproject.toml", "rb"))["tool"]; \
		[pathlib.Path("build", name + ".txt").write_text("\n".join(lines)) for name, lines in tool["mosaic-photon"].items()]'
	$(LOCKED) --extra titan --no-config --overrides build/current-overrides.txt --output-file requirements-current.lock
	$(COMPILE) pyproject.toml --group foundry --no-config --overrides build/foundry-overrides.txt \
		--constraints requirements.lock --output-file build/foundry.txt
	grep -v "sys_platform == 'none'" build/foundry.txt > src/mosaic_photon/foundry.txt

clean:
	rm -rf .venv .venv-current .venv-newest data outputs
