// comm.cuh: the mean of gradients over the ranks, beside the backward, and with bf16 on the way.
//
// Beside the backward: a stream of its own (comm_beside_begin) runs the mean of the gradients that are whole, while the
// stream of the operations computes others.
//
// With bf16, half the bytes between the GPUs. The values go in buckets. Three things happen to each, and those of
// different buckets at the same time; s is whichever stream the mean runs on:
//
//   stream s           narrow 0   narrow 1   widen 0   narrow 2   widen 1   narrow 3   widen 2  ...
//   transfer stream               sum 0      sum 1                sum 2                sum 3    ...
//
//   narrow   bucket <- bf16(values)        6 bytes a value
//   sum      over the ranks, by the transport
//   widen    values <- bucket / ranks      6 bytes a value
//
// A thread owns one pack of 8 values of bf16. 348.62 M gradients: 4.2 GB, 1.4 ms at 3 TB/s, most of it behind the
// transfer. It pays where the transfer is slow. On 8 GPUs with NVLink fp32 takes 7 ms and bf16 3.5, either of which the
// backward hides: not worth eight bits. Between machines with one 100 Gb/s card 210 ms become 105; of each it hides 45.
//
// The numbers. A gradient is rounded to 8 bits (2^-9 relative), and each addition on the way again; the errors of
// different values are independent, and Adam divides them by the gradient's own size. The division by the number of
// ranks is in fp32.
// Look next at adam_update in common/cuda/optimizer.cuh, which takes the mean.
#pragma once
// defines: launch, pack, load_upto, store_upto, PACK_THREADS, pack_begin, pack_blocks
#include "common/cuda/reduce.cuh"
// defines: comm_t
#include "common/training/comm.h"

#ifndef COMM_BUCKET
#define COMM_BUCKET ((size_t)25 << 20) // values: 50 MiB, a millisecond of copying even over the slowest NVLink
#endif

struct comm_buckets {
    bf16* bucket[2];         // (COMM_BUCKET)
    device_stream_t transfer;
    cudaEvent_t narrowed[2], summed[2];
};

__global__ static void comm_narrow_kernel(bf16* out,       // (n)
                                          const float* in, // (n)
                                          size_t n) {
    constexpr int half = pack<float>::size;
    size_t i = pack_begin<bf16>();
    if (i >= n) return;
    pack<bf16> narrow;
    pack<float> low = load_upto(in + i, n - i), high = {};
    if (i + half < n) high = load_upto(in + i + half, n - i - half);
    for (int j = 0; j < half; j++) {
        narrow[j] = (bf16)low[j];
        narrow[half + j] = (bf16)high[j];
    }
    store_upto(out + i, narrow, n - i);
}

__global__ static void comm_widen_kernel(float* out,     // (n)
                                         const bf16* in, // (n)
                                         float scale, size_t n) {
    constexpr int half = pack<float>::size;
    size_t i = pack_begin<bf16>();
    if (i >= n) return;
    pack<bf16> narrow = load_upto(in + i, n - i);
    pack<float> low, high;
    for (int j = 0; j < half; j++) {
        low[j] = (float)narrow[j] * scale;
        high[j] = (float)narrow[half + j] * scale;
    }
    store_upto(out + i, low, n - i);
    if (i + half < n) store_upto(out + i + half, high, n - i - half);
}

#ifndef COMM_NCCL
// bucket <- the sum over the ranks, in place. NCCL adds bf16; MPI knows floats.
static inline void comm_transport_sum_bf16(comm_t* c, bf16* bucket, size_t n, stream_t s) {
    float* wide = (float*)device_malloc(n * sizeof(float), "a bucket");
    launch<comm_widen_kernel>(pack_blocks<bf16>(n), PACK_THREADS, 0, s, wide, bucket, (float)c->size, n);
    comm_transport_mean(c, wide, n, s);
    launch<comm_narrow_kernel>(pack_blocks<bf16>(n), PACK_THREADS, 0, s, bucket, wide, n);
    device_free(wide);
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Beside the backward. NCCL's kernels take some of the multiprocessors meanwhile.

struct comm_beside {
    device_stream_t stream;
    cudaEvent_t ready, done;
};

// As the stream of the operations, with a CUDA stream of its own.
static inline device_stream_t comm_own_stream(stream_t s) {
    device_stream_t own = *s;
    CUDA_CHECK(cudaStreamCreateWithFlags(&own.cuda, cudaStreamNonBlocking));
    return own;
}

static inline void comm_beside_open(comm_t* c, stream_t s) {
    struct comm_beside* b = (struct comm_beside*)calloc_check(1, sizeof *b, "a stream");
    b->stream = comm_own_stream(s);
    CUDA_CHECK(cudaEventCreateWithFlags(&b->ready, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&b->done, cudaEventDisableTiming));
    c->beside = b;
}

static inline void comm_beside_close(comm_t* c) {
    cudaEventDestroy(c->beside->ready);
    cudaEventDestroy(c->beside->done);
    cudaStreamDestroy(c->beside->stream.cuda);
    free(c->beside);
    c->beside = NULL;
}

// The stream beside s, which goes on once s has done what it was given up to here.
static inline stream_t comm_beside_begin(comm_t* c, stream_t s) {
    CUDA_CHECK(cudaEventRecord(c->beside->ready, s->cuda));
    CUDA_CHECK(cudaStreamWaitEvent(c->beside->stream.cuda, c->beside->ready, 0));
    return &c->beside->stream;
}

static inline void comm_beside_end(comm_t* c, stream_t s) {
    CUDA_CHECK(cudaEventRecord(c->beside->done, c->beside->stream.cuda));
    CUDA_CHECK(cudaStreamWaitEvent(s->cuda, c->beside->done, 0));
}

// ---------------------------------------------------------------------------------------------------------------------
// bf16 on the way

static inline void comm_buckets_open(comm_t* c, stream_t s) {
    struct comm_buckets* b = (struct comm_buckets*)calloc_check(1, sizeof *b, "buckets");
    b->transfer = comm_own_stream(s);
    for (int i = 0; i < 2; i++) {
        b->bucket[i] = (bf16*)device_malloc(COMM_BUCKET * sizeof(bf16), "gradients on their way in bf16");
        CUDA_CHECK(cudaEventCreateWithFlags(&b->narrowed[i], cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&b->summed[i], cudaEventDisableTiming));
    }
    c->buckets = b;
}

static inline void comm_buckets_close(comm_t* c) {
    struct comm_buckets* b = c->buckets;
    for (int i = 0; i < 2; i++) {
        device_free(b->bucket[i]);
        cudaEventDestroy(b->narrowed[i]);
        cudaEventDestroy(b->summed[i]);
    }
    cudaStreamDestroy(b->transfer.cuda);
    free(b);
    c->buckets = NULL;
}

static inline size_t comm_bucket_size(size_t n, size_t i) {
    return n - i * COMM_BUCKET < COMM_BUCKET ? n - i * COMM_BUCKET : COMM_BUCKET;
}

static inline void comm_narrow(struct comm_buckets* b, const floatS* values, size_t n, size_t i, stream_t s) {
    size_t size = comm_bucket_size(n, i);
    launch<comm_narrow_kernel>(pack_blocks<bf16>(size), PACK_THREADS, 0, s, b->bucket[i % 2], values + i * COMM_BUCKET,
                               size);
    CUDA_CHECK(cudaEventRecord(b->narrowed[i % 2], s->cuda));
}

// A bucket's memory is written again two buckets later, by s behind the widening, so that no other wait is needed.
static inline void comm_mean_bf16(comm_t* c, floatS* values, size_t n, stream_t s) {
    struct comm_buckets* b = c->buckets;
    size_t count = (n + COMM_BUCKET - 1) / COMM_BUCKET;
    comm_narrow(b, values, n, 0, s);
    for (size_t i = 0; i < count; i++) {
        size_t size = comm_bucket_size(n, i);
        bf16* bucket = b->bucket[i % 2];
        if (i + 1 < count) comm_narrow(b, values, n, i + 1, s);
        CUDA_CHECK(cudaStreamWaitEvent(b->transfer.cuda, b->narrowed[i % 2], 0));
        comm_transport_sum_bf16(c, bucket, size, &b->transfer);
        CUDA_CHECK(cudaEventRecord(b->summed[i % 2], b->transfer.cuda));
        CUDA_CHECK(cudaStreamWaitEvent(s->cuda, b->summed[i % 2], 0));
        launch<comm_widen_kernel>(pack_blocks<bf16>(size), PACK_THREADS, 0, s, values + i * COMM_BUCKET, bucket,
                                  1.0f / (float)c->size, size);
    }
}
