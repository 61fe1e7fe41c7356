# make demo      install, train, evaluate, plot        make test   install, run the tests
# make install   only create the environment, .venv    make lint   install, run ruff
# make doctor    check that this machine computes what it should
# make install EXTRAS=cuda   with the CUDA libraries, on Linux with an NVIDIA GPU; also EXTRAS=cuda,vertex ...
PYTHON ?= python3
EXTRAS ?=
BIN := .venv/bin
comma := ,
INSTALLED := .venv/installed$(addprefix -,$(EXTRAS))
RUN := runs/demo

.PHONY: demo test lint install doctor
demo: $(INSTALLED)
	$(BIN)/python -m rethink_tf.train --gin_file=gin_configs/demo.gin --model_dir=$(RUN)
	@echo; echo "Images in $(RUN):"; find $(RUN) -name '*.png' | sort

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

install: $(INSTALLED)
	@echo 'installed; now: . .venv/bin/activate'

lint: $(INSTALLED)
	$(BIN)/ruff check .

doctor: $(INSTALLED)
	$(BIN)/python -m rethink_tf.doctor

# Again whenever the pins change. uv installs in half a minute, pip in three; pip is the fallback, since uv does not read
# pip's configuration of mirrors. The exact pins have wheels for Python 3.11 and later. uv leaves bytecode to the first
# import: it is written here, since it takes longer than the import, and with PYTHONDONTWRITEBYTECODE in each process.
$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))" || \
	  { echo "error: TensorFlow 2.20 needs Python 3.10, 3.11 or 3.12: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	@pins=$$($(BIN)/python -c "import sys; print('-c constraints.txt' * (sys.version_info >= (3, 11)))"); \
	echo "installing TensorFlow and the rest into .venv, half a minute to three"; \
	$(BIN)/python -m pip install --quiet $$pins uv && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python $$pins -e '.[dev$(addprefix $(comma),$(EXTRAS))]' || \
	$(BIN)/python -m pip install --quiet $$pins -e '.[dev$(addprefix $(comma),$(EXTRAS))]'
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c 'import matplotlib.pyplot, rethink_tf.experiment'
	@touch $@
