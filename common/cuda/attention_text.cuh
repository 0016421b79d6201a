// attention_text.cuh: attention of text encoders, forward: matrix products around a softmax with a bias, as
// attention_products.cuh cuts them. Formula: common/ops.h, dev/cpu/attention.h.
//
// Texts are short and their encoders run once a text: at 77 tokens the scores of T5-XXL cost 0.3% of its layers' MAC. At
// 512 tokens a layer's scores are 67 MB an image, and S and P pass through memory four times: 70 us at 3 TB/s, beside
// 0.2 ms for the layer's products. Look next at common/cuda/embed.cuh.
#pragma once
// defines: the operations' contracts
#include "common/ops.h"
// defines: attention_products, attention_step_t, ATTENTION_ROWS
#include "common/cuda/attention_products.cuh"

// One row of scores a warp. Where NH is 1 the heads of a step are those of several images (attention_cut_t).
__global__ static void text_softmax_kernel(floatX* p,           // (heads, rows, T)
                                           const float* scores, // (heads, rows, T)
                                           const float* bias,   // (2 T - 1, NH) or NULL
                                           const int* first,    // (B) or NULL
                                           int causal, attention_step_t step, int T, int NH) {
    int i = blockIdx.x * ATTENTION_ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (i >= step.heads * step.rows) return;
    int head = step.head + i / step.rows, query = step.first + i % step.rows;
    int image = NH == 1 ? head : step.batch, h = NH == 1 ? 0 : head;
    int begin = first ? first[image] : 0, end = causal ? query + 1 : T;
    const float* row = scores + (size_t)i * T;
    const float* of_key_0 = bias ? bias + (size_t)(T - 1 - query) * NH + h : nullptr;
    float most = -INFINITY, sum = 0;
    for (int j = begin + lane; j < end; j += WARP) most = fmaxf(most, row[j] + (bias ? of_key_0[(size_t)j * NH] : 0));
    most = warp_max(most);
    for (int j = begin + lane; j < end; j += WARP) sum += expf(row[j] + (bias ? of_key_0[(size_t)j * NH] : 0) - most);
    sum = warp_sum(sum);
    for (int j = lane; j < T; j += WARP) {
        float weight = 0;
        if (j >= begin && j < end) weight = expf(row[j] + (bias ? of_key_0[(size_t)j * NH] : 0) - most) / sum;
        p[(size_t)i * T + j] = (floatX)weight;
    }
}

// As text_attention_forward, in so much scratch memory.
static void text_attention_products(floatX* out, const floatX* qkv, const floatS* bias, const int* first, double scale,
                                    int causal, int B, int T, int NH, int HS, size_t scratch_bytes, stream_t s) {
    auto softmax = [=](floatX* p, const float* scores, attention_cut_t, attention_step_t step) {
        unsigned blocks = blocks_for((size_t)step.heads * step.rows, ATTENTION_ROWS);
        launch<text_softmax_kernel>(blocks, ATTENTION_ROWS * (int)WARP, 0, s, p, scores, bias, first, causal, step, T,
                                    NH);
    };
    attention_products(out, qkv, scale, B, T, NH, HS, scratch_bytes, s, softmax);
}

void text_attention_forward(floatX* out,        // (B, T, NH, HS)
                            const floatX* qkv,  // (B, T, 3, NH, HS)
                            const floatS* bias, // (2 T - 1, NH) or NULL
                            const int* first,   // (B) or NULL
                            double scale, int causal, int B, int T, int NH, int HS, stream_t s) {
    text_attention_products(out, qkv, bias, first, scale, causal, B, T, NH, HS, DEVICE_SCRATCH_BYTES, s);
}
