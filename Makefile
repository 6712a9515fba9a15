## Fine-tune an image classifier on a folder of labelled images.
##
## Usage: make <target> [name=value ...] [ARGS="..."]
##
# Lines with "##" are what `make help` prints. Every target but help, lock and clean first sets up
# .venv, unless .venv/.installed is newer than the lock.

ifneq ($(filter 3.%,$(MAKE_VERSION)),)
  $(error GNU make 4.0 or newer is needed, this is $(MAKE_VERSION); on macOS: brew install make, then type gmake instead of make)
endif

override SHELL := /bin/sh
override .SHELLFLAGS := -ec
PYTHON ?= python3
.DEFAULT_GOAL := help
.NOTPARALLEL:
.ONESHELL:
.SUFFIXES:

override make.targets := help train evaluate compare predict export serve inspect data pretrain cache install check test bench lock clean distclean
.PHONY: $(make.targets)

# Without this, `make train dataset.root= ~/flowers` trains on something else before it complains.
override make.unknown := $(filter-out $(make.targets) .venv/.installed .venv-peers/.installed,$(MAKECMDGOALS))
ifneq ($(make.unknown),)
  $(error unknown: $(make.unknown). Expected: $(make.targets); options as name=value without spaces around "="; anything else in ARGS="..."; see make help)
endif

# What was typed as name=value reaches the verb byte for byte: `value` leaves "$" alone, single
# quotes stop the shell, and only names from make's command line are taken. `override` keeps what
# was typed from replacing a definition of this file.
override define make.newline


endef
override make.quote = $(if $(findstring $(make.newline),$1),$(error a value cannot contain a line break: $1))'$(subst ','\'',$1)'
override make.is_typed = $(filter command,$(firstword $(origin $1)))
override make.names = $(filter-out ARGS PYTHON VPATH MAKE% MFLAGS,$(sort \
  $(foreach make.each,$(.VARIABLES),$(if $(call make.is_typed,$(make.each)),$(make.each)))))
override make.options = $(foreach make.each,$(make.names),$(call make.quote,$(make.each)=$(value $(make.each))))

# $(call make.run,<arguments of python>) adds the words of ARGS. Python splits them, because the
# shell would expand "~", "*" and "$" too. `exec`, so that a signal to make reaches the verb.
override define make.run
unset MAKELEVEL
set -- $1
$(if $(call make.is_typed,ARGS),$(call make.add_words,$(call make.quote,$(value ARGS))))
exec .venv/bin/python "$$@"
endef
override define make.add_words
words=$$(.venv/bin/python -ISc 'import shlex, sys; print(shlex.join(shlex.split(sys.argv[1])))' $1 2>/dev/null) || {
  printf 'ARGS: got %s, which ends inside a quote or in a backslash.\n' $1 >&2
  exit 2
}
eval "set -- \"\$$@\" $$words"
endef

## The verbs:
train: .venv/.installed ## fine-tune; without options: on handwritten digits, offline
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune train $(make.options))

evaluate: .venv/.installed ## measure a run on a split or on another folder
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune evaluate $(make.options))

compare: .venv/.installed ## several runs, or several backbones, on the same images
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune compare $(make.options))

predict: .venv/.installed ## classify a file, a folder or a pattern
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune predict $(make.options))

export: .venv/.installed ## write a run's model for use without this package
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune export $(make.options))

serve: .venv/.installed ## answer over HTTP on this machine
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune serve $(make.options))

inspect: .venv/.installed ## count and check the images of a folder
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune inspect $(make.options))

data: .venv/.installed ## fetch the public images of a data set: dataset=medical
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune data $(make.options))

pretrain: .venv/.installed ## make the embedded weights of nano anew, for an hour
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune train experiment=pretrain_nano $(make.options))

cache: .venv/.installed ## show what is kept between runs; clear=all removes it
	@export FINETUNE_PROGRAM=make
	$(call make.run,-m finetune cache $(make.options))

##
## Set-up and development:
install: .venv/.installed ## set up .venv (the other targets do that by themselves)
	@echo 'Ready: make train, or .venv/bin/finetune train from any folder.'

check: .venv/.installed ## lint, format, types, and who may import whom
	@status=0
	.venv/bin/ruff check || status=1
	.venv/bin/ruff format --check || status=1
	.venv/bin/mypy || status=1
	.venv/bin/lint-imports || status=1
	exit $$status

test: .venv/.installed ## run the tests
	@$(call make.run,-m pytest)

bench: .venv/.installed .venv-peers/.installed ## compare with peers, for hours: ARGS="--weights FILE FOLDER"
	@$(call make.run,benchmarks)

lock: ## renew requirements.lock from pyproject.toml (newest versions: ARGS=--upgrade)
	@$(make.find_python)
	folder=$$(mktemp -d)
	trap 'rm -rf "$$folder"' EXIT
	"$$python" -m venv "$$folder"
	"$$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
	"$$folder/bin/uv" pip compile --quiet pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --output-file requirements.lock $(if $(call make.is_typed,ARGS),$(ARGS))

clean: ## remove caches and build outputs; never runs/ or data/
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find . \( -path ./.venv -o -path ./.venv-peers -o -path ./runs -o -path ./data \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv and .venv-peers too
	@rm -rf .venv .venv-peers

help: ## show this page
	@awk '/^##/ { print substr($$0, 4) } sub(/:.*## /, " ") && /^[a-z]/ { $$1 = sprintf("  %-10s", $$1); print }' Makefile

override define make.find_python
python=$(call make.quote,$(PYTHON))
version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=missing
case $$version in
3.11|3.12|3.13) ;;
*) printf 'Python 3.11, 3.12 or 3.13 is needed, and %s is %s. Name another one: make install PYTHON=/path/to/python\n' "$$python" "$$version" >&2
  exit 1 ;;
esac
"$$python" -c 'import ensurepip, venv' 2>/dev/null || {
  printf '%s cannot make virtual environments; on Debian or Ubuntu: apt install python%s-venv\n' "$$python" "$$version" >&2
  exit 1
}
endef

# A set-up that was interrupted starts anew, since pip takes a package that is half there for
# installed. Any other .venv is kept and brought up to date.
.venv/.installed: requirements.lock pyproject.toml
	@if [ ! -e .venv/.unfinished ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
	  echo 'Bringing .venv up to date with requirements.lock.' >&2
	else
	  $(make.find_python)
	  echo "Setting up .venv with Python $$version, once: a few minutes, up to 6 GB." >&2
	  "$$python" -m venv --clear --without-pip .venv
	  touch .venv/.unfinished
	  .venv/bin/python -Im ensurepip --default-pip >/dev/null
	fi
	touch .venv/.unfinished
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	rm .venv/.unfinished
	touch $@

# What the benchmarks compare with, which nothing else needs.
.venv-peers/.installed: benchmarks/requirements-peers.txt
	@$(make.find_python)
	echo 'Setting up .venv-peers, for benchmarks: a few minutes, up to 7 GB.' >&2
	"$$python" -m venv --clear .venv-peers
	export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USER=0
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/requirements-peers.txt
	touch $@

# make would also put what was typed, and its own flags, into the environment of every recipe.
# Down here, where `override` has taken effect on every name of this file.
unexport $(make.names) ARGS PYTHON MAKEFLAGS MAKEOVERRIDES MFLAGS

##
## Examples:
##   make train
##   make train dataset.root=~/flowers model=resnet50 optimizer.lr=3e-4 freeze=backbone
##   make evaluate run=runs/latest
##   make predict run=runs/latest input=/new/images output=out.csv
##   make export run=runs/latest format=torchscript
##   make inspect dataset.root=~/flowers
##   make data dataset=medical && make train dataset=medical
##   make train ARGS=--help           all options of a verb
##   make test ARGS="-k splits -x"    some of the tests
##
## Each name=value goes to the verb as typed; quote it for the shell where it has spaces, brackets
## or "$": 'name=two words'. Everything that is not name=value goes into ARGS.
## PYTHON=python3.12 names the Python of the first set-up.
## When a verb fails, make ends with status 2 and prints the verb's own: 1 where the run failed,
## 2 where the command has a mistake.
