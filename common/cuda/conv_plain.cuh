// conv_plain.cuh: the matrix product of a convolution (common/cuda/conv_job.cuh) in fp32 arithmetic, for the fp32 build
// and for numbers of channels that are no multiples of 8. Any size; elements are read one by one.
//
// The windows of all images stand in one row. A block of 256 threads owns 64 of them and 64 output channels; thread
// (y, x) of 16 x 16 owns 4 windows from 4 y on and 4 channels from 4 x on. A slab is up to 16 channels of one tap.
// While a slab is multiplied from shared memory, the next one is on its way to registers: 4 channels of one window and
// 4 of the weights a thread. Both lie in shared memory with the channel as the row: a thread takes its 4 windows and
// its 4 outputs by two reads of 16 bytes for 16 products. An H100 can do 33 T multiply-accumulates a second in this
// way; about half is reached.
#pragma once
// defines: conv_job_t, conv_class_t, conv_out_at, conv_finish
#include "common/cuda/conv_job.cuh"

enum { CONV_PLAIN = 64, CONV_PLAIN_SLAB = 16, CONV_PLAIN_PITCH = CONV_PLAIN + 4, CONV_PLAIN_THREADS = 256 };

template <bool DATA> __global__ void conv_plain_kernel(conv_job_t job) {
    const conv_class_t at = job.at[blockIdx.y];
    int tiles_n = (job.OC + CONV_PLAIN - 1) / CONV_PLAIN, n = blockIdx.x % tiles_n * CONV_PLAIN;
    size_t first = (size_t)(blockIdx.x / tiles_n) * CONV_PLAIN, windows = (size_t)job.B * at.OH * at.OW;
    if (first >= windows) return; // this class has fewer windows than the first

    // This thread reads channels x_c + e of window x_m, and of the weights 4 values along their last index, from
    // channel w_c of output w_o on: with DATA that index is the output.
    int t = threadIdx.x, x_m = t / 4, x_c = t % 4 * 4, w_c = DATA ? t / 16 : t % 4 * 4, w_o = DATA ? t % 16 * 4 : t / 4;
    size_t m = first + x_m;
    int h = (int)(m / at.OW % at.OH) * job.stride - at.pad_top, w = (int)(m % at.OW) * job.stride - at.pad_left;
    const floatX* image = job.x + m / at.OW / at.OH * job.H * job.W * job.C;
    const floatX* weight = job.weight + at.weight
                           + (ptrdiff_t)(n + w_o) * job.by_output + (ptrdiff_t)w_c * job.by_channel;

    shared<float> a = shared_array<float>(0, CONV_PLAIN_SLAB * CONV_PLAIN_PITCH);
    shared<float> b = shared_array<float>(CONV_PLAIN_SLAB * CONV_PLAIN_PITCH * sizeof(float),
                                          CONV_PLAIN_SLAB * CONV_PLAIN_PITCH);
    int slabs = at.KH * at.KW * ((job.C + CONV_PLAIN_SLAB - 1) / CONV_PLAIN_SLAB), y = t / 16 * 4, x = t % 16 * 4;
    int u = 0, v = 0, c = 0; // tap and first channel of the slab to be read
    float sum[4][4] = {};
    for (int k = -1; k < slabs; k++) {
        float from_x[4], from_w[4];
        bool inside = m < windows && h + u >= 0 && h + u < job.H && w + v >= 0 && w + v < job.W;
        for (int e = 0; e < 4 && k + 1 < slabs; e++) {
            bool valid = inside && c + x_c + e < job.C;
            from_x[e] = valid ? (float)image[((ptrdiff_t)(h + u) * job.W + w + v) * job.C + c + x_c + e] : 0;
            valid = c + w_c + (DATA ? 0 : e) < job.C && n + w_o + (DATA ? e : 0) < job.OC;
            from_w[e] = valid ? (float)weight[u * job.by_row + v * job.by_column + c * job.by_channel + e] : 0;
        }
        for (int i = 0; i < CONV_PLAIN_SLAB && k >= 0; i++) {
            pack<float> av = load16(a + i * CONV_PLAIN_PITCH + y), bv = load16(b + i * CONV_PLAIN_PITCH + x);
            for (int p = 0; p < 4; p++) {
                for (int q = 0; q < 4; q++) sum[p][q] = fmaf(av[p], bv[q], sum[p][q]);
            }
        }
        if (k + 1 == slabs) break;
        __syncthreads(); // all have done with slab k
        for (int e = 0; e < 4; e++) {
            a[(x_c + e) * CONV_PLAIN_PITCH + x_m] = from_x[e];
            b[(w_c + (DATA ? 0 : e)) * CONV_PLAIN_PITCH + w_o + (DATA ? e : 0)] = from_w[e];
        }
        __syncthreads();
        c += CONV_PLAIN_SLAB;
        if (c >= job.C) c = 0, v++;
        if (v == at.KW) v = 0, u++;
    }
    for (int p = 0; p < 4; p++) {
        size_t window = first + y + p;
        if (window >= windows) break;
        int image_out = (int)(window / at.OW / at.OH), i = (int)(window / at.OW % at.OH), j = (int)(window % at.OW);
        size_t to = conv_out_at(job, at, image_out, i, j);
        for (int q = 0; q < 4; q++) {
            int o = n + x + q;
            if (o >= job.OC) break;
            float bias = job.bias ? (float)job.bias[o] : 0, beside = job.beside ? (float)job.beside[to + o] : 0;
            job.out[to + o] = (floatX)conv_finish<DATA>(job, sum[p][q] + bias, beside);
        }
    }
}

static inline void conv_plain(const conv_job_t& job, bool data, stream_t s) {
    size_t windows = (size_t)job.B * job.at[0].OH * job.at[0].OW;
    dim3 grid(blocks_for(windows, CONV_PLAIN) * blocks_for(job.OC, CONV_PLAIN), job.classes);
    size_t bytes = 2 * CONV_PLAIN_SLAB * CONV_PLAIN_PITCH * sizeof(float);
    if (data) launch<conv_plain_kernel<true>>(grid, CONV_PLAIN_THREADS, bytes, s, job);
    else launch<conv_plain_kernel<false>>(grid, CONV_PLAIN_THREADS, bytes, s, job);
}
