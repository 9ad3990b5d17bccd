# build   compile in place, for an editable install: only what has changed, on all cores
# test    the whole suite, on what `build` has made
# check   formats, lint, types, spelling: what a commit must pass (continuous integration runs it, too)
# format  set Python and C files as `check` wants them
# asan    the suite, but for what tests/watched.py names, under AddressSanitizer and UndefinedBehaviorSanitizer (TESTS: of it)
# tsan    every stage and kernel on several threads under ThreadSanitizer
# fuzz    a minute of attacks on everything that is read (fuzz/README.md)
# fuzz-native  the kernels on inputs of libFuzzer, under both of asan's sanitizers, SECONDS of each target
# aarch64  kernels and whole models of AArch64, compiled across and emulated
# amx     AMX's table under Linux on a machine that Bochs emulates, from the source in BOCHS (root)
# long    long runs: many steps, many kills, a busy machine (STEPS, STOPS, KILLS, MINUTES: how many)
# hosts   training on several hosts that are namespaces of this machine, over slow and broken networks (root)
# bench   what `cvit bench` measures here
# clean   remove everything that is built
#
# After `pip install -e ".[test]"` build, test, asan, tsan and long have all they need; check and format take `pip install -e ".[dev]"`.
# The sanitizers' builds stand in build/asan and build/tsan; the one in place stays as it is.
PYTHON ?= python
CC ?= cc

library = $(shell $(CC) -print-file-name=lib$(1).so)
build_into = CC="$(CC)" $(PYTHON) setup.py -q build --build-base $(1) --build-lib $(1)/lib
SANITIZERS = address,undefined
reports = $(CURDIR)/build/asan/reports
TESTS = tests

STEPS = 200000
STOPS = 20
KILLS = 200
MINUTES = 5

C_FILES = $(shell find bench csrc cvit tests fuzz -name '*.c' -o -name '*.h' -o -name '*.inc')

.PHONY: build test check format asan tsan fuzz fuzz-native aarch64 amx long hosts bench clean

build:
	$(PYTHON) setup.py -q build_clib build_ext --inplace

test: build
	$(PYTHON) -m pytest

check:
	ruff format --check .
	ruff check .
	clang-format --dry-run -Werror $(C_FILES)
	cython-lint cvit
	mypy
	typos

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(C_FILES)

# PYTHONSAFEPATH and PYTHONPATH: import the sanitized build and not the one in place, in processes that tests start as well.
# A report ends its process, and is seen although a test may want that one to fail: AddressSanitizer's are files that are
# looked at in the end (they hold warnings, too); UndefinedBehaviorSanitizer, which writes to standard error alone beside it, ends by SIGABRT.
# Leaks: Python's own at exit would be reported. More memory than there is shall be a MemoryError, as it is elsewhere.
asan:
	CVIT_SANITIZE=$(SANITIZERS) $(call build_into,build/asan)
	rm -rf $(reports) && mkdir -p $(reports)
	LD_PRELOAD="$(call library,asan) $(call library,ubsan)" PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/build/asan/lib:$(CURDIR)" \
	CVIT_SANITIZE=$(SANITIZERS) ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path=$(reports)/address \
	UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1 \
	$(PYTHON) -m pytest -p no:cacheprovider --capture=sys $(TESTS); \
	status=$$?; if grep -rq ERROR: $(reports); then cat $(reports)/*; exit 1; fi; exit $$status

# setarch -R: without it the loader may put things where ThreadSanitizer keeps its shadow memory.
tsan:
	CVIT_SANITIZE=thread $(call build_into,build/tsan)
	$(CC) -O1 -Wall -Wextra -Werror -fPIC -shared tests/races/openmp.c -o build/tsan/openmp.so -fopenmp -Wl,--no-as-needed -lgomp -ldl
	LD_PRELOAD="$(call library,tsan) $(CURDIR)/build/tsan/openmp.so" PYTHONPATH=build/tsan/lib:tests OMP_WAIT_POLICY=passive \
	TSAN_OPTIONS=halt_on_error=0:exitcode=66 setarch -R $(PYTHON) -P tests/races/run.py

fuzz:
	$(PYTHON) -m fuzz --seconds 60

SECONDS = 60
fuzz-native:
	$(PYTHON) fuzz/native/run.py --seconds $(SECONDS)

aarch64:
	$(PYTHON) tests/aarch64/run.py

amx: build
	PYTHONPATH="$(CURDIR)" $(PYTHON) tests/amx/run.py --bochs "$(BOCHS)"

# Some forty minutes on two busy cores. See docs/testing.md.
long hosts: export PYTHONPATH = $(CURDIR):$(CURDIR)/tests
long: build
	$(PYTHON) tests/long/steps.py --steps $(STEPS) --stops $(STOPS)
	$(PYTHON) tests/long/kills.py --kills $(KILLS)
	$(PYTHON) tests/long/disturbed.py --minutes $(MINUTES)

# Needs root and iproute2.
hosts: build
	$(PYTHON) tests/long/hosts.py

bench:
	$(PYTHON) -m cvit.cli bench

clean:
	rm -rf build dist *.egg-info $$(find cvit -name '*.so') .pytest_cache .hypothesis .mypy_cache .ruff_cache
