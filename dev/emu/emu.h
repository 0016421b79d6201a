// emu.h: runs the CUDA kernels of this project on a CPU, thread by thread, with no GPU and no CUDA toolkit.
#pragma once
// defines: dim3, __nv_bfloat16, pack, min, max, ...
#include "dev/emu/types.h"
// defines: launch, __syncthreads, emu_set_order, emu_report
#include "dev/emu/block.h"
// defines: shared, shared_array, load16, store16, cp_async_16, atomicAdd
#include "dev/emu/shared.h"
// defines: __shfl_sync, __ballot_sync, __syncwarp, ldmatrix_x4, mma_m16n8k16
#include "dev/emu/warp.h"
// defines: cudaMalloc, cudaMemcpyAsync, cudaStreamSynchronize, ..., emu_fresh, emu_allocations, emu_synchronisations
#include "dev/emu/runtime.h"
// defines: cublasLtMatmul and what belongs to it
#include "dev/emu/cublaslt.h"
