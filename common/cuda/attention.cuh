// attention.cuh: softmax attention over packed queries, keys and values. Formulas and derivation: dev/cpu/attention.h.
//
// Two ways, told apart by the head size:
//
//   attention_tiles.cuh      bf16, HS at most 128 and a multiple of 8: vision and diffusion transformers. One kernel
//                            forward and one backward, on tensor cores; S and P never leave registers.
//   attention_products.cuh   everything else: the decoder's one head of 512 channels, odd sizes, the FP32 build. Matrix
//                            products around a softmax kernel; S and P pass through scratch memory. A score of a head
//                            of 512 costs 1024 MAC and 12 bytes, so that is little.
//
// Both give the same bits every time: no two blocks add to one value. Look next at common/cuda/attention_tiles.cuh.
#pragma once
// defines: the operations' contracts
#include "common/ops.h"
// defines: attention_products_forward, attention_products_backward
#include "common/cuda/attention_products.cuh"
#ifndef FP32
// defines: packable
#include "common/cuda/rows.cuh"
// defines: attention_tiles_forward, ATTENTION_MOST_CHANNELS
#include "common/cuda/attention_forward.cuh"
// defines: attention_tiles_backward
#include "common/cuda/attention_backward.cuh"
#endif

void attention_forward(floatX* out,          // (B, T, NH, HS)
                       floatS* lse,          // (B, NH, T)
                       const floatX* qkv,    // (B, T, 3, NH, HS)
                       const int* first_key, // (B) or NULL for 0
                       int B, int T, int NH, int HS, stream_t s) {
#ifndef FP32
    if (HS <= ATTENTION_MOST_CHANNELS && packable(HS, out, qkv)) {
        if (HS <= 32) attention_tiles_forward<32>(out, lse, qkv, first_key, B, T, NH, HS, s);
        else if (HS <= 64) attention_tiles_forward<64>(out, lse, qkv, first_key, B, T, NH, HS, s);
        else if (HS <= 72) attention_tiles_forward<72>(out, lse, qkv, first_key, B, T, NH, HS, s);
        else if (HS <= 80) attention_tiles_forward<80>(out, lse, qkv, first_key, B, T, NH, HS, s);
        else attention_tiles_forward<128>(out, lse, qkv, first_key, B, T, NH, HS, s);
        return;
    }
#endif
    attention_products_forward(out, lse, qkv, first_key, B, T, NH, HS, DEVICE_SCRATCH_BYTES, s);
}

void attention_backward(floatX* dqkv,         // (B, T, 3, NH, HS)
                        const floatX* dout,   // (B, T, NH, HS)
                        const floatX* qkv,    // (B, T, 3, NH, HS)
                        const floatX* out,    // (B, T, NH, HS)
                        const floatS* lse,    // (B, NH, T)
                        const int* first_key, // (B) or NULL for 0
                        int B, int T, int NH, int HS, stream_t s) {
#ifndef FP32
    if (HS <= ATTENTION_MOST_CHANNELS && packable(HS, dqkv, dout, qkv, out)) {
        const size_t scratch = DEVICE_SCRATCH_BYTES;
        if (HS <= 32) attention_tiles_backward<32>(dqkv, dout, qkv, out, lse, first_key, B, T, NH, HS, scratch, s);
        else if (HS <= 64) attention_tiles_backward<64>(dqkv, dout, qkv, out, lse, first_key, B, T, NH, HS, scratch, s);
        else if (HS <= 72 && !first_key) // attention_head: why
            attention_tiles_backward<72>(dqkv, dout, qkv, out, lse, NULL, B, T, NH, HS, scratch, s);
        else if (HS <= 80) attention_tiles_backward<80>(dqkv, dout, qkv, out, lse, first_key, B, T, NH, HS, scratch, s);
        else attention_tiles_backward<128>(dqkv, dout, qkv, out, lse, first_key, B, T, NH, HS, scratch, s);
        return;
    }
#endif
    attention_products_backward(dqkv, dout, qkv, out, lse, first_key, B, T, NH, HS, DEVICE_SCRATCH_BYTES, s);
}
