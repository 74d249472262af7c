# make demo   a first run, from nothing: environment, stand-in hand, synthetic data, two epochs on two ranks
# make learn  what the tiny network learns in half an hour on two cores: SEED=0 chooses data and weights,
#             DOMAIN=table trains on HO3D's world instead of the wide one (the other one is scored as well);
#             data and crop cache take 14 GB, of table 24 GB;
#             LEARN_SETTINGS="training.num_epochs=8" changes the recipe
# make test   the whole test suite, from nothing
# make lint   ruff and mypy
# make bench  the benchmarks, into runs/bench/
# make detector  what `predict --boxes detect` needs
# make setup  the environment alone, in .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/demo
DEMO_SEQUENCES ?= 90
DEMO_FRAMES ?= 16
DEMO_EVALUATION_SEQUENCES ?= 6
# Not ?=: servers and containers have a DOMAIN of their own.
SEED := 0
DOMAIN := wide
OTHER := $(if $(filter wide,$(DOMAIN)),table,wide)
$(if $(findstring /$(DOMAIN)/,/table/wide/),,$(error DOMAIN=$(DOMAIN): want wide or table))
LEARN := data/learn/$(DOMAIN)-seed$(SEED)
LEARN_OTHER := data/learn/$(OTHER)-seed$(SEED)-held-out
LEARN_TREE := --frames 10 --evaluation-sequences 0 --seed $(SEED) --workers 2
# 1,600 frames of 80 motions are held out. Ten neighbouring frames of table are one picture, and its cameras see
# less than those of wide: twice the views and every 16th frame, in the motions that are trained on.
LEARN_table := --domain table --sequences 2000 --cameras 2 --pace 16 \
	--held-out-sequences 80 --held-out-frames 20 --held-out-cameras 1
LEARN_wide := --domain wide --sequences 1000 --cameras 2 --held-out-sequences 160 --held-out-frames 10
# What table shows is narrower, and so is what it is scored on: less augmentation scores better
# (records/2026-11-30-more-views.md).
LEARN_RECIPE_table := dataset.p_drop_depth=0.15 \
	augmentation.roll_deg=20 augmentation.colour=0.2 augmentation.p_occluder=0.15
LEARN_SETTINGS ?=
# Those of some settings whose keys LEARN_SETTINGS does not name.
unless_set = $(foreach s,$(1),$(if $(filter $(firstword $(subst =, ,$(s)))=%,$(LEARN_SETTINGS)),,$(s)))
# What `make learn` names itself; in LEARN_SETTINGS it would be given twice.
LEARN_RUN := train.py --config config/learn.yaml seed=$(SEED) validation.split=val \
	$(call unless_set,$(LEARN_RECIPE_$(DOMAIN))) $(LEARN_SETTINGS)
LEARN_RANDOM := split.by=frame split.held_out_list=null
LEARN_RUNS := $(patsubst logging.runs_dir=%,%,$(or $(filter logging.runs_dir=%,$(LEARN_SETTINGS)),runs))
LEARN_ELSEWHERE := dataset.root_dir=$(LEARN_OTHER) $(call unless_set,dataset.cache=off)

.PHONY: setup demo demo-data learn learn-settings learn-data learn-other detector test lint bench clean

setup: $(VENV)/.ready

# The stamp is newer than the requirements only after a complete install.
$(VENV)/.ready: requirements.txt requirements-dev.txt
	@sh .ci/check_python '$(PYTHON)' '$(MAKECMDGOALS)' $(VENV) $(origin PYTHON)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo-data: setup
	$(BIN)/python -m dataloader.synthetic.hand --out $(DATA)/STANDIN_RIGHT.pkl
	$(BIN)/python -m dataloader.synthetic --out $(DATA)/HO3D_synthetic --sequences $(DEMO_SEQUENCES) \
		--frames $(DEMO_FRAMES) --evaluation-sequences $(DEMO_EVALUATION_SEQUENCES) --seed 0 --workers 2

demo: demo-data
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc_per_node=2 train.py --config config/demo.yaml
	@echo
	@echo "Where to look:"
	@run=$$(ls -d runs/[0-9]*-demo | tail -n 1); \
		echo "  log and scores      $$run/log.txt"; \
		echo "  page to look at     $$run/val/report.html"; \
		echo "  checkpoints         $$run/checkpoints/{last,best}.pt"; \
		echo "  curves              $(BIN)/tensorboard --logdir runs"; \
		echo "  the data            $(DATA)/HO3D_synthetic/train/*/rgb/*.jpg"; \
		echo "  score a checkpoint  $(BIN)/python train.py --evaluate $$run/checkpoints/best.pt"; \
		echo "  predict new frames  $(BIN)/python -m src.tools.predict --checkpoint $$run/checkpoints/best.pt" \
			"--rgb $(DATA)/HO3D_synthetic --boxes labels --meshes obj --out hands"

# A slip in LEARN_SETTINGS is said now, and not after the data are made.
learn-settings: setup
	@$(BIN)/python $(LEARN_RUN) $(LEARN_RANDOM) $(LEARN_ELSEWHERE) runtime.threads=1 name=learn --print-config > /dev/null

learn-data: setup
	$(BIN)/python -m dataloader.synthetic.hand --out data/learn/STANDIN_RIGHT.pkl
	$(BIN)/python -m dataloader.synthetic --out $(LEARN) $(LEARN_TREE) $(LEARN_$(DOMAIN))

learn-other: learn-data
	$(BIN)/python -m dataloader.synthetic --out $(LEARN_OTHER) $(LEARN_TREE) $(LEARN_$(OTHER)) --annotations-only train

# One process: on two cores, two ranks wait for each other in each step, which takes a tenth of the time. Its runs
# have names of their own ($$$$: the number of a process), or another `make learn` could be scored in their place.
learn: learn-settings learn-data learn-other
	@set -e; threads=$$($(BIN)/python -c 'from src.runtime.machine import worker_count; print(worker_count())'); \
	export OMP_NUM_THREADS=$$threads; \
	own=learn-$(SEED)-$$$$; newest() { ls -d $(LEARN_RUNS)/[0-9]*-$$own$$1 | tail -n 1; }; \
	run="$(BIN)/python $(LEARN_RUN) runtime.threads=$$threads"; \
	data=dataset.root_dir=$(LEARN); \
	$$run $$data name=$$own; \
	score="--evaluate $$(newest)/checkpoints/last.pt"; \
	$$run $$data name=$$own-held-out $$score; \
	$$run $$data name=$$own-random $(LEARN_RANDOM) $$score; \
	$$run $(LEARN_ELSEWHERE) name=$$own-other $$score; \
	$(BIN)/python -m src.tools.learned --run $$(newest) --held-out $$(newest -held-out) \
		--random $$(newest -random) --other $$(newest -other)

# For `--boxes detect`: the library, and MediaPipe's models out of its wheel.
detector: setup
	$(BIN)/python -m pip install --quiet --group detect
	$(BIN)/python .ci/fetch_detector.py data/detector

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache
