// emu.h: runs the CUDA kernels of this project on a CPU, thread by thread, with no GPU and no CUDA toolkit.
//
// A kernel is C++ with a few more words. These headers define the words: g++ -x c++ -std=c++20 -DUSE_CUDA -DEMU
// compiles common/cuda as it stands, and the GPU build's whole code path runs, slowly, on any machine. What it is for
// is finding mistakes. Built with -fsanitize=address,undefined it stops with the kernel, block and thread at
//   - a barrier or a warp collective that not all threads reach, a wrong mask, different collectives in one warp
//   - an access to device memory outside of its block or after cudaFree; a misaligned one; the host's code touching it
//   - shared memory: out of bounds, never written, misaligned, a race, a cp_async_16 that was not waited for
//   - launches that a GPU refuses, pointers to host memory in a kernel's arguments, copies of the wrong kind
// Memory that nobody wrote is NaN. emu_set_order(seed) lets threads and blocks run in another order: the result must
// stay the same, bit for bit. Without the sanitizers it is faster, and device memory is not watched. tests/emulator.cu
// plants each of these mistakes and checks that it is found. With EMU_CAPABILITY=8.6 in the environment a block has the
// shared memory of an RTX 30, 99 KiB, and no longer an H100's 227.
//
// What it does not see: races in device memory (but by another order), bank conflicts, speed, registers, what nvcc
// makes of the source; sums in tensor cores are rounded in another way than on a GPU. Not reentrant: one thread of the
// host launches.
//
//   cost, one 2.3 GHz core of a Xeon     plain   sanitized
//   a switch to another thread           20 ns       50 ns
//   a thread without barriers             6 ns       24 ns
//   __syncthreads of 256 threads          5 us       15 us
//   a shuffle of a warp                 1.1 us      4.4 us
//   ldmatrix_x4 of a warp               1.8 us      4.4 us
//   mma_m16n8k16 of a warp              1.7 us      4.9 us
//   a float read from shared memory      12 ns       28 ns
//
// Read on in the order of the includes.
#pragma once
// defines: dim3, threadIdx, __nv_bfloat16, pack, min, max, ...
#include "dev/emu/types.h"
// defines: emu_fiber, emu_switch_to
#include "dev/emu/fiber.h"
// defines: emu, emu_report
#include "dev/emu/state.h"
// defines: shared, shared_array, load16, store16, cp_async_16, atomicAdd, emu_float_atomics
#include "dev/emu/shared.h"
// defines: cudaMalloc, cudaMemcpyAsync, cudaStreamSynchronize, ..., emu_fresh, emu_allocations, emu_synchronisations
#include "dev/emu/runtime.h"
// defines: launch, __syncthreads, emu_set_order
#include "dev/emu/block.h"
// defines: __shfl_sync, __ballot_sync, __syncwarp, ldmatrix_x4, mma_m16n8k16
#include "dev/emu/warp.h"
// defines: cublasLtMatmul and what belongs to it
#include "dev/emu/cublaslt.h"
