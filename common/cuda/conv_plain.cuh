// conv_plain.cuh: the matrix product of a convolution (common/cuda/conv_job.cuh) in fp32 arithmetic, for the fp32 build and
// for numbers of channels that are no multiples of 8. Any size; elements are read one by one.
//
// A block of 256 threads owns 64 windows and 64 output channels; thread (y, x) of 16 x 16 owns the 4 windows from 4 y on
// and the 4 channels from 4 x on. A slab is up to 16 channels of one tap. While a slab is multiplied from shared memory,
// the next one is on its way to registers: 4 values of one window and 4 of the weights a thread. Both lie in shared memory
// with the channel as the row: a thread takes its 4 windows and its 4 outputs by two reads of 16 bytes for 16 products.
// An H100 does 33 T products a second in this way at the most.
#pragma once
// defines: conv_job_t, conv_class_t, conv_window, conv_finish, conv_slab_t
#include "common/cuda/conv_job.cuh"

enum { CONV_PLAIN_TILE = 64, CONV_PLAIN_SLAB = 16, CONV_PLAIN_PITCH = CONV_PLAIN_TILE + 4, CONV_PLAIN_THREADS = 256 };

template <bool DATA> __global__ void conv_plain_kernel(conv_job_t job) {
    const conv_class_t at = job.at[blockIdx.y];
    int tiles_n = (job.OC + CONV_PLAIN_TILE - 1) / CONV_PLAIN_TILE, windows = job.B * at.OH * at.OW;
    int m = blockIdx.x / tiles_n * CONV_PLAIN_TILE, n = blockIdx.x % tiles_n * CONV_PLAIN_TILE;
    if (m >= windows) return; // this class has fewer windows than the first

    // The thread's part of a slab: channels x_c + e of window x_m, channels w_c + e DATA' of output w_o + e DATA. Weights
    // are read along their last index, which is the channel, or with DATA the output.
    int t = threadIdx.x, x_m = t / 4, x_c = t % 4 * 4;
    int w_c = DATA ? t / 16 : t % 4 * 4, w_o = DATA ? t % 16 * 4 : t / 4;
    conv_window_t window = conv_window(job, at, m + x_m);
    const floatX* weight = job.weight + at.weight + (ptrdiff_t)(n + w_o) * job.by_output + (ptrdiff_t)w_c * job.by_channel;

    shared<float> a = shared_array<float>(0, CONV_PLAIN_SLAB * CONV_PLAIN_PITCH);
    shared<float> b = shared_array<float>(CONV_PLAIN_SLAB * CONV_PLAIN_PITCH * sizeof(float), CONV_PLAIN_SLAB * CONV_PLAIN_PITCH);
    int slabs = conv_slabs(job, at, CONV_PLAIN_SLAB), y = t / 16 * 4, x = t % 16 * 4;
    conv_slab_t slab = conv_first_slab();
    float sum[4][4] = {};
    for (int k = -1; k < slabs; k++) {
        float from_x[4], from_w[4];
        for (int e = 0; e < 4 && k + 1 < slabs; e++) {
            bool valid = (window.taps & slab.bit) && slab.c + x_c + e < job.C;
            from_x[e] = valid ? (float)window.x[slab.x + x_c + e] : 0;
            valid = slab.c + w_c + (DATA ? 0 : e) < job.C && n + w_o + (DATA ? e : 0) < job.OC;
            from_w[e] = valid ? (float)weight[slab.w + e] : 0;
        }
        for (int c = 0; c < CONV_PLAIN_SLAB && k >= 0; c++) {
            pack<float> av = load16(a + c * CONV_PLAIN_PITCH + y), bv = load16(b + c * CONV_PLAIN_PITCH + x);
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
            }
        }
        if (k + 1 == slabs) break;
        __syncthreads(); // all have done with slab k
        for (int e = 0; e < 4; e++) {
            a[(x_c + e) * CONV_PLAIN_PITCH + x_m] = from_x[e];
            b[(w_c + (DATA ? 0 : e)) * CONV_PLAIN_PITCH + w_o + (DATA ? e : 0)] = from_w[e];
        }
        __syncthreads();
        slab = conv_next_slab(slab, job, at, CONV_PLAIN_SLAB);
    }
    for (int i = 0; i < 4; i++) {
        if (m + y + i >= windows) break;
        size_t to = conv_out_at(job, at, m + y + i);
        for (int j = 0; j < 4; j++) {
            int o = n + x + j;
            if (o >= job.OC) break;
            float bias = job.bias ? (float)job.bias[o] : 0, beside = job.beside ? (float)job.beside[to + o] : 0;
            job.out[to + o] = (floatX)conv_finish(job, sum[i][j] + bias, beside);
        }
    }
}

static inline void conv_plain(const conv_job_t& job, bool data, stream_t s) {
    dim3 grid(blocks_for(conv_windows(&job, 0), CONV_PLAIN_TILE) * blocks_for(job.OC, CONV_PLAIN_TILE), job.classes);
    size_t bytes = 2 * CONV_PLAIN_SLAB * CONV_PLAIN_PITCH * sizeof(float);
    if (data) launch<conv_plain_kernel<true>>(grid, CONV_PLAIN_THREADS, bytes, s, job);
    else launch<conv_plain_kernel<false>>(grid, CONV_PLAIN_THREADS, bytes, s, job);
}
