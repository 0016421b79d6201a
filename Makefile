# aligntok.c, on one page. `make help` explains it.
#
# One source, three builds; a program is two objects in each: its own, and the operations.
#   CPU   gcc, plain C11 on dev/cpu:           learning, tests, small runs, machines with no GPU
#   GPU   nvcc on common/cuda:                 training and sampling
#   EMU   g++ on common/cuda and dev/emu:      every kernel and the whole GPU code path on a machine with no GPU
# Variables: see `make help`. After a change of CC or MPI: make clean.

CC      ?= gcc
NVCC    ?= $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc),nvcc)
NVCC    := $(NVCC)
V       ?= 0
SANITIZE ?= 0
WERROR  ?= 0
PRECISION ?= BF16
Q       := $(if $(filter 1,$(V)),,@)

# ----------------------------------------------------------------------------------------------------------------------
# Which build

HAVE_NVCC := $(shell command -v $(NVCC) >/dev/null 2>&1 && echo 1)
HAVE_GPU  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1)
ifeq ($(GPU),1)
KIND := gpu
WHY  := GPU=1 was given
else ifeq ($(EMU),1)
KIND := emu
WHY  := EMU=1 was given: the GPU's kernels, run thread by thread; slow, for looking and testing
else ifeq ($(CPU),1)
KIND := cpu
WHY  := CPU=1 was given
else ifeq ($(HAVE_NVCC)$(HAVE_GPU),11)
KIND := gpu
WHY  := nvcc and a GPU are here (CPU=1 builds for the CPU)
else ifeq ($(HAVE_NVCC),1)
KIND := cpu
WHY  := nvcc is here, but no GPU that works (nvidia-smi -L); GPU=1 compiles for one
else
KIND := cpu
WHY  := no nvcc here
endif
FP32   := $(filter FP32,$(PRECISION))
FOLDER := build/$(if $(filter cpu,$(KIND)),cpu,$(KIND)$(if $(FP32),_fp32,))
BUILD  := build/$(if $(filter 1,$(SANITIZE)),sanitize,cpu)

# ----------------------------------------------------------------------------------------------------------------------
# Compilers and their flags

# What dev/carry.sh brought to a machine that has no network; as system headers (CPATH would make them the user's)
ifneq ($(wildcard build/carried),)
export C_INCLUDE_PATH     := $(CURDIR)/build/carried/include$(addprefix :,$(C_INCLUDE_PATH))
export CPLUS_INCLUDE_PATH := $(CURDIR)/build/carried/include$(addprefix :,$(CPLUS_INCLUDE_PATH))
export LIBRARY_PATH       := $(CURDIR)/build/carried/lib$(addprefix :,$(LIBRARY_PATH))
endif

# What is there is asked of the linker, since a header can be there without its library; and once (`:=` behind `?=`).
# LAPACK and its BLAS, for what measures distributions (eval): OpenBLAS has both; else another library. The GPU build takes
# cuSOLVER and cuBLAS instead.
LAPACK  ?= $(shell for l in -lopenblas -lopenblas,-llapack -llapack,-lblas; do \
             l=$$(echo $$l | tr , ' '); printf 'void dgemm_(void), dsyrk_(void), dsyevd_(void), dgesdd_(void);\n\
             int main(void) { dgemm_(); dsyrk_(); dsyevd_(); dgesdd_(); return 0; }\n' | \
             $(CC) -x c - -o /dev/null $$l 2>/dev/null && echo $$l && break; done)
LAPACK  := $(LAPACK)
LAPACK_FLAGS := $(if $(LAPACK),-DLAPACK=1,)
# MPI: Open MPI, whose mpicc tells what it adds
MPI     ?= $(shell printf '\043include <mpi.h>\nint main(void) { return MPI_Finalize(); }\n' | \
             $(CC) -x c - -o /dev/null $$(mpicc --showme:compile 2>&1) $$(mpicc --showme:link 2>&1) 2>/dev/null && \
             echo 1 || echo 0)
MPI     := $(MPI)
MPI_FLAGS := $(if $(filter 1,$(MPI)),-DMPI=1 $(patsubst -I%,-isystem %,$(shell mpicc --showme:compile)),)
MPI_LIBS  := $(if $(filter 1,$(MPI)),$(shell mpicc --showme:link),)
# WERROR=1, as in CI: a warning is an error. Not so for users, whose compilers may know warnings that ours do not.
FATAL   := $(filter 1,$(WERROR))
WARN    := -Wall -Wextra $(if $(FATAL),-Werror)
# Operations. gcc splits what is wider than it prefers, on Intel's processors 256 bits. The matrix product (dev/cpu/gemm.h)
# keeps a block in the widest registers that there are: split, it leaves them, and is 30 times slower. Of all that -O3 adds
# to -O2, loops gain by vectors and short ones by being written out.
LOOPS   := -mprefer-vector-width=512 -ftree-loop-vectorize -fvect-cost-model=dynamic -fpeel-loops
GCC     := $(shell echo 'int x;' | $(CC) -x c -S -Werror $(LOOPS) -o /dev/null - 2>/dev/null && echo 1)
FAST    := $(if $(GCC),-O2 $(LOOPS),-O3) -march=native -fno-math-errno
# What calls them, programs and tests: images load as fast with this as with -O2, which takes twice as long to compile.
CALLERS := $(if $(GCC),-O1 -finline-small-functions $(LOOPS),-O2) -march=native -fno-math-errno
# What runs for seconds and would take longer to compile than that: tests, and programs whose operations are emulated or in double
QUICK   := -O0
CHECKED := -O1 -g1 -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all
SANITIZERS := $(if $(filter 1,$(SANITIZE)),$(filter -fsanitize%,$(CHECKED)))
# gcc warns of values that are no less set and names that are no longer than without sanitizers, and says so in its manual
C_CHECKED := $(CHECKED) -march=native -Wno-maybe-uninitialized -Wno-format-truncation
C_FLAGS := -std=c11 -D_GNU_SOURCE $(WARN) -I. -fopenmp $(LAPACK_FLAGS) $(MPI_FLAGS)
# A program uses a part of what it includes: told that nothing else links to a file, gcc leaves the rest out at once. It
# then also sees through more calls, and warns of names that might be cut.
ALONE := $(shell echo 'int main(void) { return 0; }' | $(CC) -x c -Werror -fwhole-program -o /dev/null - 2>/dev/null && \
           echo -fwhole-program -Wno-format-truncation)
C_OPS   := -x c $(C_FLAGS) $(if $(filter 1,$(SANITIZE)),$(C_CHECKED),$(FAST))
C_CALL  := -x c $(C_FLAGS) $(if $(filter 1,$(SANITIZE)),$(C_CHECKED),$(CALLERS)) $(ALONE)
C_QUICK := -x c $(C_FLAGS) $(if $(filter 1,$(SANITIZE)),$(C_CHECKED),$(QUICK) -march=native)
C_LIBS  := -Wl,--as-needed $(LAPACK) $(MPI_LIBS) -lz -lpthread -lm

EMU_FLAGS := -x c++ -std=c++20 -D_GNU_SOURCE $(WARN) -I. -fopenmp -DUSE_CUDA -DEMU $(LAPACK_FLAGS)
EMU_LIBS  := -x none -Wl,--as-needed $(LAPACK) $(MPI_LIBS) -lz -lpthread -lm

# NCCL is no part of the CUDA Toolkit: without it the build is for one GPU.
NCCL      ?= $(if $(HAVE_NVCC),$(shell probe=$$(mktemp); \
               printf '\043include <nccl.h>\nint main(void) { return !ncclGetLastError(0); }\n' | \
               $(NVCC) -x c - -o $$probe -lnccl >/dev/null 2>&1 && echo 1 || echo 0; rm -f $$probe),0)
NCCL      := $(NCCL)
# GPU_ARCH: compute capabilities without the dot, such as 90: those of the GPUs here that nvcc knows and that the kernels
# can use (8.0 or newer), else A100's and H100's. The newest also as PTX, which drivers compile for GPUs to come.
GPU_ARCH  ?= $(or $(filter $(shell $(NVCC) --list-gpu-code 2>/dev/null | tr -dc '0-9\n'), \
               $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
               sed -n 's/^ *\([89]\|[1-9][0-9]\)\.\([0-9]\) *$$/\1\2/p' | sort -nu)),80 90)
GPU_ARCH  := $(GPU_ARCH)
GPU_NEWEST := $(shell printf '%s\n' $(GPU_ARCH) | sort -n | tail -n 1)
GPU_CODE  := $(foreach a,$(GPU_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
              -gencode arch=compute_$(GPU_NEWEST),code=compute_$(GPU_NEWEST)
# where the toolkit's libraries are, for programs that start without LD_LIBRARY_PATH
CUDA_LIBS := $(abspath $(dir $(firstword $(wildcard $(foreach d,lib64 lib targets/x86_64-linux/lib targets/sbsa-linux/lib,\
               $(dir $(realpath $(shell command -v $(NVCC) 2>/dev/null)))../$(d)/libcublasLt.so)))))
NVCC_FLAGS := -std=c++20 -O3 -D_GNU_SOURCE -I. -DUSE_CUDA -Xcompiler -Wall,-Wextra,-fopenmp \
              $(if $(FATAL),-Xcompiler -Werror -Werror all-warnings) $(if $(filter 0,$(NCCL)),-DNO_NCCL=1,) $(GPU_CODE)
NVCC_LIBS := $(if $(CUDA_LIBS),-Xlinker -rpath=$(CUDA_LIBS)) -Xlinker --as-needed -lcusolver -lcublas -lcublasLt \
              $(if $(filter 0,$(NCCL)),,-lnccl) -lz -lgomp -lm

HEADERS  := $(wildcard common/*.h common/*.cu common/*/*.h common/cuda/*.cuh dev/cpu/*.h dev/emu/*.h dev/bench/*.h tests/*.h)
PROGRAMS := train_tokenizer train_dit sample eval
TESTS    := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
KERNELS  := $(patsubst tests/kernels_%.cu,%,$(wildcard tests/kernels_*.cu))
# a whole step is emulated in bf16 alone: what it proves, that the order of threads does not matter, is no matter of precision
EMU_TESTS := $(filter-out build/emu/kernels_step_fp32,$(foreach k,$(KERNELS),build/emu/kernels_$(k)_bf16 build/emu/kernels_$(k)_fp32)) \
             $(if $(wildcard tests/emulator.cu),build/emu/emulator_test,) build/emu/test_distribution
# what `make test` runs of other builds than the CPU's; `make sanitize` has of these the kernels that are not checked there
BESIDE   := $(addprefix build/emu/,train_tokenizer eval train_dit) $(addprefix build/emu_fp32/,train_tokenizer train_dit) \
            $(addprefix build/double/,train_tokenizer train_dit sample) $(EMU_TESTS)
ifeq ($(SANITIZE),1)
BESIDE   := $(patsubst %,$(BUILD)/kernels_%_fp32,$(filter-out step full_size,$(KERNELS)))
endif
GPU_TESTS := $(foreach k,$(KERNELS),build/gpu/kernels_$(k)_bf16 build/gpu/kernels_$(k)_fp32)
# those that include the kernels that they test, and are not linked to all of them
GPU_FAMILIES := $(filter-out build/gpu/kernels_step_%,$(GPU_TESTS))
# all that gpu-check runs; the slowest to compile come first, so that no processor is left alone at the end
GPU_CHECK := $(addprefix build/gpu/,bench_models train_tokenizer train_dit eval sample pretrain bench_ops) \
             $(addprefix build/gpu_fp32/,bench_models train_tokenizer train_dit) $(GPU_TESTS) build/gpu/test_distribution \
             $(addprefix build/cpu/,train_tokenizer train_dit pretrain)
BENCHES  := $(patsubst dev/bench/%.cu,$(FOLDER)/%,$(wildcard dev/bench/bench_*.cu))

.PHONY: all help which check test run_tests test-gpu-build gpu_build test_nvcc demo run_demo demo_t2i sanitize bench gpu-check \
        gpu_check_programs deps clean FORCE
all: which $(PROGRAMS)

help:
	@echo "make                 build the programs: $(PROGRAMS)"
	@echo "make demo            train the miniature tokenizer and a LightningDiT on its latents, draw and measure (2 to 6 minutes on two cores)"
	@echo "make demo_t2i        train the miniature text-to-image transformer on the tokenizer in miniature/, draw and measure (docs/t2i.md)"
	@echo "make test            prove every derivative, kernel, model, file format and resume (5 to 10 minutes on two cores)"
	@echo "make sanitize        all CPU tests again under the address and undefined-behaviour sanitizers"
	@echo "make bench           speed of the operations and models on this machine (build/*/bench_*)"
	@echo "make test-gpu-build  compile and link all that gpu-check runs, and look at the kernels' registers and machine code; needs nvcc"
	@echo "                     and no GPU"
	@echo "make gpu-check       on a machine with a GPU, at most 12 minutes: kernels' tests, ten steps beside the CPU's, a demo, speed, races;"
	@echo "                     no network needed; PARTS=\"kernels speed\" for some of it, see dev/gpu_check.sh"
	@echo "make deps            install what is missing (Debian, Ubuntu; as root), or print the line that does"
	@echo "make clean           remove build/ and the programs (not the cached miniature world in runs/)"
	@echo "Builds: GPU where nvcc and a GPU are, else CPU. GPU=1, CPU=1, EMU=1 choose; PRECISION=FP32 instead of BF16 for GPU, EMU."
	@echo "Variables: GPU_ARCH=90 for other GPUs, MPI=0, NCCL=0, CC=..., V=1 show commands, WERROR=1 warnings are errors, as in CI;"
	@echo "DATA=FOLDER for the demo: a folder with the files of Fashion-MNIST. Programs have -h."

which:
	@echo "$(KIND) build$(if $(filter cpu,$(KIND)),,$(if $(FP32), in fp32, in bf16)): $(WHY)"
	$(if $(filter gpu,$(KIND)),$(if $(HAVE_NVCC),,$(error GPU=1 needs nvcc (CUDA Toolkit 12 or newer) on the PATH; `make CPU=1` needs none)))

vpath %.cu common dev dev/bench

# programs stand in the root, as their sources do; everything else in build/
$(PROGRAMS): %: check $(FOLDER)/% FORCE
	@cmp -s $(FOLDER)/$@ $@ || cp -p $(FOLDER)/$@ $@

# ----------------------------------------------------------------------------------------------------------------------
# Programs. In each kind of build one is two objects: its own, and the operations (common/ops.cu). A line a kind of object: how
# it is compiled; `double` is for training programs: where the order of a sum does not show, N ranks and one are compared.

build/cpu/%.o build/sanitize/%.o: COMPILE = $(CC) $(C_CALL)
build/cpu/ops.o build/sanitize/ops.o: COMPILE = $(CC) $(C_OPS)
build/double/%.o:       COMPILE = $(CC) $(C_QUICK) -DDOUBLE=1
build/double/ops.o:     COMPILE = $(CC) $(C_OPS) -DDOUBLE=1
build/emu/%.o:          COMPILE = $(CXX) $(EMU_FLAGS) $(MPI_FLAGS) $(QUICK)
build/emu/ops.o:        COMPILE = $(CXX) $(EMU_FLAGS) -O1
build/emu_fp32/%.o:     COMPILE = $(CXX) $(EMU_FLAGS) $(MPI_FLAGS) -DFP32=1 $(QUICK)
build/emu_fp32/ops.o:   COMPILE = $(CXX) $(EMU_FLAGS) -DFP32=1 -O1
build/gpu/%.o:          COMPILE = $(NVCC) $(NVCC_FLAGS)
build/gpu_fp32/%.o:     COMPILE = $(NVCC) $(NVCC_FLAGS) -DFP32=1

# and linked
LINK_C    = $(CC) -fopenmp $(SANITIZERS) $^ -o $@ $(C_LIBS)
LINK_EMU  = $(CXX) -fopenmp $^ -o $@ $(EMU_LIBS)
LINK_GPU  = $(NVCC) $(GPU_CODE) $^ -o $@ $(NVCC_LIBS)
build/cpu/% build/sanitize/% build/double/%: LINK = $(LINK_C)
build/emu/% build/emu_fp32/%: LINK = $(LINK_EMU)
build/gpu/% build/gpu_fp32/%: LINK = $(LINK_GPU)

.SECONDARY: # objects are kept
.SECONDEXPANSION: # $$ is expanded when the target is known: $$(@D) is its folder, $$(*F) its name without .o
build/%.o: $$(*F).cu $(HEADERS) | $$(@D)
	@echo "  $(notdir $(firstword $(COMPILE)))  $@"
	$(Q)$(COMPILE) -c $< -o $@

build/%: build/%.o $$(@D)/ops.o
	$(Q)$(LINK)

build/cpu build/sanitize build/double build/emu build/emu_fp32 build/gpu build/gpu_fp32:
	@mkdir -p $@

# ----------------------------------------------------------------------------------------------------------------------
# Tests in C

# the reference: for tests that check derivatives against finite differences, which say so by including gradient.h, and for
# those of kernels. It shares its loops among threads however short they are.
TEST_DOUBLE := -DDOUBLE=1 -DWORK_TO_SHARE=0
$(BUILD)/reference.o: common/ops.cu $(HEADERS) | $(BUILD)
	@echo "  cc   $@"
	$(Q)$(CC) $(C_OPS) $(TEST_DOUBLE) -c $< -o $@

# Tests that look inside operations include ops.cu.
INSIDE := $(patsubst tests/%.c,$(BUILD)/%,$(shell grep -l 'common/ops.cu' tests/test_*.c))
DERIVATIVES := $(patsubst tests/%.c,$(BUILD)/%,$(shell grep -l 'tests/gradient.h' tests/test_*.c))
$(INSIDE): $(BUILD)/%: tests/%.c $(HEADERS) | $(BUILD)
	@echo "  cc   $@"
	$(Q)$(CC) $(C_OPS) $(ALONE) $(if $(filter $@,$(DERIVATIVES)),$(TEST_DOUBLE)) $< -o $@ $(C_LIBS)

$(filter-out $(INSIDE),$(DERIVATIVES)): $(BUILD)/%: tests/%.c $(BUILD)/reference.o $(HEADERS) | $(BUILD)
	@echo "  cc   $@"
	$(Q)$(CC) $(C_QUICK) $(TEST_DOUBLE) $< -x none $(BUILD)/reference.o -o $@ $(C_LIBS)

$(BUILD)/test_%: tests/test_%.c $(BUILD)/ops.o $(HEADERS) | $(BUILD)
	@echo "  cc   $@"
	$(Q)$(CC) $(C_QUICK) $< -x none $(BUILD)/ops.o -o $@ $(C_LIBS)

$(BUILD)/check_%: dev/reference/check_%.c $(BUILD)/ops.o $(HEADERS) | $(BUILD)
	@echo "  cc   $@"
	$(Q)$(CC) $(C_QUICK) $< -x none $(BUILD)/ops.o -o $@ $(C_LIBS)

# ----------------------------------------------------------------------------------------------------------------------
# Kernels in the emulator. Each family's tests run under the sanitizers: in bf16 always, in fp32, which has fewer kernels of its
# own, by `make sanitize`. Whole steps and full-size cases use the same kernels and do without, as programs do. What tests compare
# with is C, in double.

# A family's tests include its kernels; whole steps are linked to all of them.
build/emu/kernels_step_bf16: tests/kernels_step.cu build/emu/ops.o $(HEADERS) | build/emu
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) -O1 $< -x none build/emu/ops.o -o $@ $(EMU_LIBS)

build/emu/kernels_%_bf16: tests/kernels_%.cu $(BUILD)/reference.o $(HEADERS) | build/emu
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) $(ALONE) $(if $(filter full_size,$*),-O1,$(CHECKED)) $< -x none $(BUILD)/reference.o -o $@ $(EMU_LIBS)

build/emu/kernels_%_fp32: tests/kernels_%.cu $(BUILD)/reference.o $(HEADERS) | build/emu
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) $(ALONE) -O1 -DFP32=1 $< -x none $(BUILD)/reference.o -o $@ $(EMU_LIBS)

build/sanitize/kernels_%_fp32: tests/kernels_%.cu build/sanitize/reference.o $(HEADERS) | build/sanitize
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) $(ALONE) $(CHECKED) -DFP32=1 $< -x none build/sanitize/reference.o -o $@ $(EMU_LIBS)

# what measures distributions has a GPU's libraries in these builds: their stand-ins, by the same tests
build/emu/test_%: tests/test_%.c $(HEADERS) | build/emu
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) $(ALONE) $(CHECKED) $< -o $@ $(EMU_LIBS)

build/emu/emulator_test: tests/emulator.cu $(HEADERS) | build/emu
	@echo "  c++  $@"
	$(Q)$(CXX) $(EMU_FLAGS) $(CHECKED) $< -o $@ $(EMU_LIBS)

# ----------------------------------------------------------------------------------------------------------------------
# GPU

build/gpu/test_%: tests/test_%.c $(HEADERS) | build/gpu
	@echo "  nvcc $@"
	$(Q)$(NVCC) -x cu $(NVCC_FLAGS) $< -o $@ $(NVCC_LIBS)

build/gpu/kernels_step_bf16: tests/kernels_step.cu build/gpu/ops.o $(HEADERS) | build/gpu
	@echo "  nvcc $@"
	$(Q)$(NVCC) $(NVCC_FLAGS) $< build/gpu/ops.o -o $@ $(NVCC_LIBS)

build/gpu/kernels_step_fp32: tests/kernels_step.cu build/gpu_fp32/ops.o $(HEADERS) | build/gpu
	@echo "  nvcc $@"
	$(Q)$(NVCC) $(NVCC_FLAGS) -DFP32=1 $< build/gpu_fp32/ops.o -o $@ $(NVCC_LIBS)

build/gpu/kernels_%_bf16: tests/kernels_%.cu build/cpu/reference.o $(HEADERS) | build/gpu
	@echo "  nvcc $@"
	$(Q)$(NVCC) $(NVCC_FLAGS) $< build/cpu/reference.o -o $@ $(NVCC_LIBS)

build/gpu/kernels_%_fp32: tests/kernels_%.cu build/cpu/reference.o $(HEADERS) | build/gpu
	@echo "  nvcc $@"
	$(Q)$(NVCC) $(NVCC_FLAGS) -DFP32=1 $< build/cpu/reference.o -o $@ $(NVCC_LIBS)

# ----------------------------------------------------------------------------------------------------------------------
# What people ask for

# what the build needs is there, or the line that installs it is printed; `deps` installs it when run as root
check:
	@sh dev/install.sh -check $(KIND)
deps:
	@sh dev/install.sh

# `deps` may install a library that changes the flags above: so the work is done by a second make
test: deps
	@$(MAKE) --no-print-directory -j $$(nproc) run_tests
# the slowest to compile come first, so that no processor is left alone at the end
run_tests: which $(BESIDE) $(addprefix $(BUILD)/,eval train_tokenizer train_dit pretrain sample plot) $(TESTS)
	@sh tests/run.sh $(BUILD)

sanitize: deps
	@$(MAKE) --no-print-directory -j $$(nproc) SANITIZE=1 run_tests

DEMO_T2I_TIME := 2 to 6 minutes on two idle cores, and a minute to build the programs: trains a transformer, draws, measures
DEMO_TIME := 2 to 6 minutes on two idle cores: builds the programs, trains encoder, tokenizer and LightningDiT, draws, measures
demo:
	@echo "demo: $(DEMO_TIME)"
	@sh dev/install.sh -demo $(KIND)
	@$(MAKE) --no-print-directory -j $$(nproc) run_demo
run_demo: which $(PROGRAMS) $(FOLDER)/pretrain
	@sh dev/demo.sh $(FOLDER) $(DATA:%=garments:%)
demo_t2i:
	@echo "demo_t2i: $(DEMO_T2I_TIME)"
	@sh dev/install.sh -demo $(KIND)
	@$(MAKE) --no-print-directory -j $$(nproc) which $(PROGRAMS)
	@sh dev/t2i.sh demo

bench: which $(BENCHES)
	@for b in $(BENCHES); do $$b || exit 1; done

# what gpu-check builds, for one architecture; and what the compiler says of a program with all kernels, for two: on a machine
# that has nvcc and no GPU, this is how it can break
test-gpu-build: deps
	$(if $(HAVE_NVCC),@$(MAKE) --no-print-directory -j $$(nproc) GPU_ARCH=90 test_nvcc $(GPU_FAMILIES) && \
	$(MAKE) --no-print-directory -j $$(nproc) GPU_ARCH=90 gpu_check_programs,@echo "skipped: no nvcc here")
test_nvcc: | $(BUILD) build/gpu
	@sh tests/test_nvcc.sh $(BUILD)
gpu_check_programs: $(GPU_CHECK)

gpu-check:
	@sh dev/gpu_check.sh $(PARTS)

clean:
	rm -rf build $(PROGRAMS)
