// nccl.cuh: the collectives of common/training/comm.h over NCCL.
//
// The processes meet by common/training/rendezvous.h, which needs no MPI, and hand NCCL's unique id round. A collective
// is queued on the stream like a kernel, and the host goes on: that another rank does not come is found out by nobody,
// and whoever waits for the stream waits for ever. So the thread that watches the connections to the other ranks looks
// here too, ten times a second: at the event behind the last collective and the clock, and at NCCL's own errors.
//
// Determinism. NCCL chooses its algorithm by sizes and topology: the same machine gives the same bits. NVLink SHARP,
// which adds inside the switch in an order of its own, is turned off (NCCL_NVLS_ENABLE=1 in the environment turns it on
// again).
// Look next at common/cuda/comm.cuh.
#pragma once
#include <nccl.h>
#include <pthread.h>

// defines: comm_t, comm_begin, comm_late
#include "common/training/comm.h"

struct comm_transport {
    rendezvous_t meeting;
    ncclUniqueId id;
    ncclComm_t nccl;          // NULL before comm_attach
    int device;
    cudaStream_t stream;      // of comm_sum_host
    double* host;             // (COMM_SUMS) page-locked
    double* sums;             // (COMM_SUMS) device memory
    cudaEvent_t done;         // recorded behind the last collective
    pthread_mutex_t mutex;    // guards what follows and what comm_t says about what is going on: the watcher reads it
    int on_host, on_device;   // the host is inside a call of NCCL; `done` was recorded
};

static inline void nccl_check(ncclResult_t status, const char* call) {
    if (status == ncclSuccess || status == ncclInProgress) return;
    fatal("%s failed: %s. %s. If two ranks were given the same GPU, look at LOCAL_RANK and CUDA_VISIBLE_DEVICES; for "
          "the network, run with NCCL_DEBUG=INFO",
          call, ncclGetErrorString(status), ncclGetLastError(NULL));
}
#define NCCL_CHECK(call) nccl_check((call), #call)

// Around each call: the host may wait in it for others (the first connects), and then the stream does.
static inline void nccl_enter(comm_t* c, const char* what, size_t bytes) {
    struct comm_transport* t = c->transport;
    pthread_mutex_lock(&t->mutex);
    comm_begin(c, what, bytes);
    t->on_host = 1;
    pthread_mutex_unlock(&t->mutex);
}
static inline void nccl_leave(comm_t* c, cudaStream_t stream) {
    struct comm_transport* t = c->transport;
    CUDA_CHECK(cudaEventRecord(t->done, stream)); // which waits where the stream's queue is full: not with the mutex
    pthread_mutex_lock(&t->mutex);
    c->since = clock_seconds();
    t->on_host = 0;
    t->on_device = 1;
    pthread_mutex_unlock(&t->mutex);
}

// The watcher's look. A collective is late when it is the last one that was queued, and that long ago.
static inline void nccl_watch(void* context) {
    comm_t* c = (comm_t*)context;
    struct comm_transport* t = c->transport;
    ncclResult_t state = ncclSuccess;
    pthread_mutex_lock(&t->mutex);
    if (t->on_device) {
        cudaSetDevice(t->device); // of this thread
        if (cudaEventQuery(t->done) == cudaSuccess) t->on_device = 0;
        ncclCommGetAsyncError(t->nccl, &state);
    }
    int late = (t->on_host || t->on_device) && clock_seconds() - c->since > c->time_limit;
    comm_t now = *c;
    pthread_mutex_unlock(&t->mutex);
    nccl_check(state, now.doing);
    if (late) comm_late(&now);
}

static inline void comm_transport_open(comm_t* c, const launcher_t* l) {
    struct comm_transport* t = (struct comm_transport*)calloc_check(1, sizeof *t, "NCCL");
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    pthread_mutex_init(&t->mutex, NULL);
    c->transport = t;
    if (c->rank == 0) NCCL_CHECK(ncclGetUniqueId(&t->id));
    rendezvous_open(&t->meeting, l, c->time_limit, &t->id, sizeof t->id);
    rendezvous_watch(&t->meeting, nccl_watch, c);
}

static inline void comm_transport_attach(comm_t* c, stream_t s) {
    struct comm_transport* t = c->transport;
    CUDA_CHECK(cudaGetDevice(&t->device));
    CUDA_CHECK(cudaStreamCreateWithFlags(&t->stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&t->done, cudaEventDisableTiming));
    t->host = (double*)host_malloc(COMM_SUMS * sizeof(double), "sums");
    t->sums = (double*)device_malloc(COMM_SUMS * sizeof(double), "sums");
    ncclComm_t nccl = NULL;
    nccl_enter(c, "the start of NCCL", 0);
    NCCL_CHECK(ncclCommInitRank(&nccl, c->size, t->id, c->rank));
    t->nccl = nccl; // before nccl_leave: the watcher reads it from then on
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_close(comm_t* c) {
    struct comm_transport* t = c->transport;
    if (t->nccl) {
        CUDA_CHECK(cudaDeviceSynchronize());
        nccl_enter(c, "the end of NCCL", 0);
        pthread_mutex_lock(&t->mutex);
        t->on_device = 0; // the watcher lets go of the communicator
        pthread_mutex_unlock(&t->mutex);
        NCCL_CHECK(ncclCommDestroy(t->nccl));
    }
    rendezvous_close(&t->meeting); // ends the watcher
    if (t->nccl) {
        host_free(t->host);
        device_free(t->sums);
        cudaEventDestroy(t->done);
        cudaStreamDestroy(t->stream);
    }
    free(t);
    c->transport = NULL;
}

static inline void comm_transport_mean(comm_t* c, floatS* values, size_t n, stream_t s) {
    nccl_enter(c, "comm_mean", n * sizeof(floatS));
    NCCL_CHECK(ncclAllReduce(values, values, n, ncclFloat, ncclAvg, c->transport->nccl, cuda_stream(s)));
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_sum_bf16(comm_t* c, __nv_bfloat16* bucket, size_t n, stream_t s) {
    nccl_enter(c, "comm_mean in bf16", n * sizeof *bucket);
    NCCL_CHECK(ncclAllReduce(bucket, bucket, n, ncclBfloat16, ncclSum, c->transport->nccl, cuda_stream(s)));
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_scatter(comm_t* c, floatS* values, size_t shard, stream_t s) {
    nccl_enter(c, "comm_reduce_scatter_mean", c->size * shard * sizeof(floatS));
    NCCL_CHECK(ncclReduceScatter(values, values + c->rank * shard, shard, ncclFloat, ncclAvg, c->transport->nccl,
                                 cuda_stream(s)));
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_gather(comm_t* c, void* values, size_t shard, stream_t s) {
    nccl_enter(c, "comm_all_gather", c->size * shard);
    NCCL_CHECK(ncclAllGather((char*)values + c->rank * shard, values, shard, ncclInt8, c->transport->nccl,
                             cuda_stream(s)));
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_broadcast(comm_t* c, void* p, size_t bytes, stream_t s) {
    nccl_enter(c, "comm_broadcast", bytes);
    NCCL_CHECK(ncclBroadcast(p, p, bytes, ncclInt8, 0, c->transport->nccl, cuda_stream(s)));
    nccl_leave(c, cuda_stream(s));
}

static inline void comm_transport_sum(comm_t* c, double* values, int n) {
    struct comm_transport* t = c->transport;
    size_t bytes = (size_t)n * sizeof(double);
    memcpy(t->host, values, bytes);
    nccl_enter(c, "comm_sum_host", bytes);
    CUDA_CHECK(cudaMemcpyAsync(t->sums, t->host, bytes, cudaMemcpyHostToDevice, t->stream));
    NCCL_CHECK(ncclAllReduce(t->sums, t->sums, (size_t)n, ncclDouble, ncclSum, t->nccl, t->stream));
    CUDA_CHECK(cudaMemcpyAsync(t->host, t->sums, bytes, cudaMemcpyDeviceToHost, t->stream));
    nccl_leave(c, t->stream);
    CUDA_CHECK(cudaStreamSynchronize(t->stream));
    memcpy(values, t->host, bytes);
}
