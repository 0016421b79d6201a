# aligntok.c, on one page. `make help` explains it.
#
# One source, several builds; each program is one translation unit, so one compiler call builds one program.
#   CPU   gcc, plain C11: learning, tests, small runs, machines with no GPU
# Variables: CC, BLAS=0 (portable loops instead of OpenBLAS), SANITIZE=1 (address and undefined behaviour), V=1 (show commands)

CC      ?= gcc
V       ?= 0
SANITIZE ?= 0
Q       := $(if $(filter 1,$(V)),,@)
BLAS    ?= $(shell printf '\043include <cblas.h>\nint main(void) { openblas_set_num_threads(1); return 0; }\n' | \
             $(CC) -x c - -o /dev/null -lopenblas 2>/dev/null && echo 1 || echo 0)
BUILD   := build/$(if $(filter 1,$(SANITIZE)),sanitize,cpu)
HEADERS := $(wildcard common/*.h common/cuda/*.cuh dev/cpu/*.h dev/emu/*.h dev/bench/*.h tests/*.h)

WARN    := -Wall -Wextra -Werror
C_FLAGS := -std=c11 -D_GNU_SOURCE $(WARN) -I. -fopenmp $(if $(filter 1,$(BLAS)),-DBLAS=1,)
C_FLAGS += $(if $(filter 1,$(SANITIZE)),-O1 -g -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all,-O3 -march=native -fno-math-errno)
LIBS    := $(if $(filter 1,$(BLAS)),-lopenblas,) -lz -lpthread -lm

PROGRAMS := train_tokenizer eval
TESTS    := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
BENCHES  := $(patsubst dev/bench/%.c,$(BUILD)/%,$(wildcard dev/bench/bench_*.c))

.PHONY: all help which check test run_tests demo run_demo sanitize bench deps clean
all: which check $(PROGRAMS)

help:
	@echo "make                 build the programs: $(PROGRAMS)"
	@echo "make demo            train the miniature tokenizer through its three stages (about 5 minutes on two cores)"
	@echo "make test            prove every derivative, model, file format and resume (under 10 minutes on two cores)"
	@echo "make sanitize        all tests again under the address and undefined-behaviour sanitizers"
	@echo "make bench           speed of the operations and models on this machine (build/cpu/bench_*)"
	@echo "make deps            install what is missing (Debian, Ubuntu; as root), or print the line that does"
	@echo "make clean           remove build/ and the programs (not the cached miniature world in runs/)"
	@echo "Variables: BLAS=0 portable loops, CC=... (make clean after a change of these), V=1 show commands. Programs have -h."

which:
	@echo "CPU build with $(CC), $(if $(filter 1,$(BLAS)),OpenBLAS,portable loops (no OpenBLAS found: make deps)): this tree has no CUDA kernels yet"
	$(if $(filter 1,$(GPU)$(EMU)),$(error GPU=1 and EMU=1 need the CUDA kernels (common/cuda), which this tree does not have yet; use plain `make`))

# programs stand in the root, as their sources do; everything else in build/
$(PROGRAMS): %: %.cu $(HEADERS)
	@echo "  cc  $@"
	$(Q)$(CC) -x c $(C_FLAGS) $< -o $@ $(LIBS)

$(BUILD)/pretrain: dev/pretrain.cu $(HEADERS) | $(BUILD)
	@echo "  cc  $@"
	$(Q)$(CC) -x c $(C_FLAGS) $< -o $@ $(LIBS)

# a program under the sanitizers, or a test's own copy
$(BUILD)/%: %.cu $(HEADERS) | $(BUILD)
	@echo "  cc  $@"
	$(Q)$(CC) -x c $(C_FLAGS) $< -o $@ $(LIBS)

# tests that check derivatives against finite differences say so by including gradient.h, and run in double
$(BUILD)/test_%: tests/test_%.c $(HEADERS) | $(BUILD)
	@echo "  cc  $@"
	$(Q)$(CC) $(C_FLAGS) $(if $(shell grep -l 'tests/gradient.h' $<),-DDOUBLE=1,) $< -o $@ $(LIBS)

$(BUILD)/check_%: dev/reference/check_%.c $(HEADERS) | $(BUILD)
	@echo "  cc  $@"
	$(Q)$(CC) $(C_FLAGS) $< -o $@ $(LIBS)

$(BUILD)/bench_%: dev/bench/bench_%.c $(HEADERS) | $(BUILD)
	@echo "  cc  $@"
	$(Q)$(CC) $(C_FLAGS) $< -o $@ $(LIBS)

# Kernels in the emulator (g++ on common/cuda), always under the sanitizers, in bf16 and in fp32; the reference is C, in double.
EMU_FLAGS := -x c++ -std=c++20 -D_GNU_SOURCE $(WARN) -I. -DUSE_CUDA -DEMU -O1 -g -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all
build/emu/reference.o: tests/reference.c common/ops.h common/op_types.h common/device.h $(wildcard dev/cpu/*.h) | build/emu
	@echo "  cc  $@"
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE $(WARN) -I. -fopenmp -DDOUBLE=1 -O3 -march=native -fno-math-errno -c $< -o $@
build/emu/kernels_%_bf16: tests/kernels_%.cu build/emu/reference.o $(HEADERS) | build/emu
	@echo "  c++ $@"
	$(Q)$(CXX) $(EMU_FLAGS) $< -x none build/emu/reference.o -o $@ -fopenmp -lpthread -lm
build/emu/kernels_%_fp32: tests/kernels_%.cu build/emu/reference.o $(HEADERS) | build/emu
	@echo "  c++ $@"
	$(Q)$(CXX) $(EMU_FLAGS) -DFP32=1 $< -x none build/emu/reference.o -o $@ -fopenmp -lpthread -lm

$(BUILD) build/emu:
	@mkdir -p $@

# what the build needs is there, or the line that installs it is printed; `deps` installs it when run as root
check:
	@sh dev/install.sh -check
deps:
	@sh dev/install.sh

# `deps` may install a library that changes the flags above: so the work is done by a second make
test: deps
	@$(MAKE) --no-print-directory -j $$(nproc) run_tests
run_tests: which $(TESTS) $(BUILD)/pretrain $(addprefix $(BUILD)/,$(PROGRAMS))
	@sh tests/run.sh $(BUILD)

sanitize: deps
	@$(MAKE) --no-print-directory -j $$(nproc) SANITIZE=1 run_tests

demo: deps
	@$(MAKE) --no-print-directory -j $$(nproc) run_demo
run_demo: which $(PROGRAMS) $(BUILD)/pretrain
	@sh dev/demo.sh

bench: which $(BENCHES)
	@for b in $(BENCHES); do $$b || exit 1; done

clean:
	rm -rf build $(PROGRAMS)
