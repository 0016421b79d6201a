// comm.h: training with several processes, one a GPU, each on its share of the batch.
//
// All processes hold the same weights and compute the gradients of their own images; the gradients are averaged; all
// take the same step. What crosses process boundaries is the few functions below. Each is a collective: every rank
// calls it, in the same order, with the same sizes.
//
//   build            transport                                         started by
//   GPU              NCCL: common/cuda/nccl.cuh                        torchrun, srun, mpirun:
//                    (they meet by common/training/rendezvous.h)
//   CPU, EMU         MPI (-DMPI=1): dev/cpu/mpi.h                      mpirun, srun
//   CPU, EMU         none (without MPI=1): a single process
//   GPU              none (-DNO_NCCL=1, where NCCL is not installed): a single process
//
// A process that was started alone has rank 0 and size 1; every function then returns at once, and neither sockets nor
// a library are touched.
//
// Order in a program:
//     comm_t comm = {.time_limit = seconds};
//     comm_options_begin(&comm);                 who am I; from here on rank 0 says the errors of all
//     comm_open(&comm);                          all are there
//     stream_t s = device_open(comm.local_rank);
//     comm_attach(&comm, s);
//     comm_options_end();                        all is checked and open; errors are each rank's own
//     comm_broadcast(&comm, weights, ...);       once: all start from rank 0's bytes
//     each step: gradients of the local batch, the mean of those that are whole begun beside the rest of the backward
//         (comm_mean_begin); comm_mean_end(&comm, s); the same step everywhere
//     comm_close(&comm);                         wherever the program ends well
//
// What a step costs. An all-reduce of n bytes over R ranks sends and receives 2 (R-1)/R n on each. Stage 2 of the
// DINOv2-L tokenizer has 348.6M gradients, 1.39 GB in fp32: 7 ms over NVLink (350 GB/s), beside 45 ms of gradients
// where 8 GPUs have 8 images each. Begun in parts beside the backward, all but the last part of it is hidden.
// Between machines with one 100 Gb/s card it is 210 ms, and half of that in bf16 (`bf16`, see common/cuda/comm.cuh).
//
// The sharded optimiser (ZeRO-1; Rajbhandari et al. 2020). Averaging is a reduce-scatter (each rank gets the mean of
// its share of the values) followed by an all-gather (each share goes to all). A rank that has the mean of its share
// can step that share alone, and gather the new weights instead of the gradients:
//     comm_reduce_scatter_mean(gradients);  adam_update(this rank's share);  comm_all_gather(weights)
// Moments, master weights and averages then exist once, spread over the ranks: 20 bytes a parameter become 20/R, the
// optimiser's time is divided by R, and the gather in bf16 moves half of what that of the gradients would.
//
// Determinism. The same number of ranks gives the same bits. MPI: sums run in the order of the ranks, in double, so
// that shards give the bits of comm_mean. NCCL: its algorithm is a function of sizes and machine.
//
// Errors. fatal() in one rank ends all, and so does a rank that is killed, within seconds; a message names the rank.
// What does not end within `time_limit` seconds, because a rank never comes to it, ends all ranks with a message that
// names the collective.
// Look next at dev/cpu/mpi.h, the shorter transport.
#pragma once
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

// defines: floatS, stream_t, fatal
#include "common/device.h"
// defines: launcher_t, launcher_read, machine_cores
#include "common/training/rendezvous.h"

#define COMM_TIME_LIMIT 600.0 // seconds
enum { COMM_SUMS = 1 << 16 };       // values of comm_sum_host that go at once, 512 KB: each time is a round trip
enum { COMM_BF16_LEAST = 1 << 16 }; // values; fewer are no faster in bf16, and a sum of squares shall keep its digits

typedef struct {
    // set by the caller, before comm_open
    double time_limit; // seconds that the start, or one collective, may take; 0: COMM_TIME_LIMIT
    int bf16;          // comm_mean sends bf16: half the bytes, each value rounded to 8 bits on its way (GPU builds)
    // set by comm_open
    int rank, size;    // this process, of how many
    int local_rank;    // its number on its machine: the GPU that it takes
    int local_size;    // processes of the run on this machine
    // what is going on, for messages
    const char* doing;
    size_t bytes;
    uint64_t number;   // collectives begun, this one included
    double since;
    struct comm_transport* transport;
    struct comm_beside* beside;   // of common/cuda/comm.cuh: where means run beside other work,
    struct comm_buckets* buckets; // and where they are bf16
} comm_t;

// Rank 0 writes files and talks.
static inline int comm_is_first(const comm_t* c) { return c->rank == 0; }

static inline void comm_begin(comm_t* c, const char* what, size_t bytes) {
    c->doing = what;
    c->bytes = bytes;
    c->number++;
    c->since = clock_seconds();
}

// Ends all ranks: the collective that is going on has taken longer than the time limit.
__attribute__((noreturn)) static inline void comm_late(const comm_t* c) {
    fatal("%s (collective %llu, %zu bytes) has not ended within %g s: another rank has not come to it. Compare what "
          "the ranks printed last: one may be stuck (in reading data, in writing a file), or have taken another way "
          "through the program. If it is only slow, give a larger time limit",
          c->doing, (unsigned long long)c->number, c->bytes, c->time_limit);
}

#if defined(USE_CUDA) && !defined(EMU) && !defined(NO_NCCL)
#define COMM_NCCL 1
#endif
#ifdef COMM_NCCL // in the emulator: a test, with tests/ranks/stand_in/nccl.h
// defines: comm_transport_*
#include "common/cuda/nccl.cuh"
#elif defined(MPI)
// defines: comm_transport_*
#include "dev/cpu/mpi.h"
#else
static inline void comm_transport_open(comm_t* c, const launcher_t* l) {
    (void)c;
#ifdef NO_NCCL
    const char* remedy = "with NCCL (Debian, Ubuntu: apt-get install libnccl-dev, from NVIDIA's repository)";
#else
    const char* remedy = "with `make MPI=1` (Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin)";
#endif
    fatal("this process was started as rank %d of %d (by %s), but this program was built for a single one. Build it "
          "%s, or start it alone", l->rank, l->size, l->name, remedy);
}
// A single process never comes to these.
static inline void comm_transport_attach(comm_t* c, stream_t s) { (void)c, (void)s; }
static inline void comm_transport_close(comm_t* c) { (void)c; }
static inline void comm_transport_mean(comm_t* c, floatS* v, size_t n, stream_t s) {
    (void)c, (void)v, (void)n, (void)s;
}
static inline void comm_transport_scatter(comm_t* c, floatS* v, size_t n, stream_t s) {
    (void)c, (void)v, (void)n, (void)s;
}
static inline void comm_transport_gather(comm_t* c, void* p, size_t n, stream_t s) {
    (void)c, (void)p, (void)n, (void)s;
}
static inline void comm_transport_broadcast(comm_t* c, void* p, size_t n, stream_t s) {
    (void)c, (void)p, (void)n, (void)s;
}
static inline void comm_transport_sum(comm_t* c, double* v, int n) { (void)c, (void)v, (void)n; }
#endif

#ifdef USE_CUDA
// defines: comm_mean_bf16, comm_buckets_open, comm_buckets_close, comm_beside_begin, ...
#include "common/cuda/comm.cuh"
#endif

// torchrun sets OMP_NUM_THREADS to 1 where nobody has set it, which would leave what is done on the host, such as
// decoding the images that eval measures, to one core of many.
static inline void comm_take_cores(const launcher_t* l) {
#ifdef _OPENMP
    const char* threads = getenv("OMP_NUM_THREADS");
    int of_torchrun = l->name && !strcmp(l->name, "torchrun") && threads && !strcmp(threads, "1");
    if (of_torchrun) omp_set_num_threads(machine_cores(l->local_size));
#else
    (void)l;
#endif
}

// Finds out which process this is. From here on messages name the rank.
static inline launcher_t comm_who_am_i(comm_t* c) {
    launcher_t launcher = launcher_read();
    log_rank = c->rank = launcher.rank;
    log_size = c->size = launcher.size;
    c->local_rank = launcher.local_rank;
    c->local_size = launcher.local_size;
    return launcher;
}

// While options are read and checked, and what they name is opened, all ranks meet the same errors: rank 0 says them,
// and the others end behind it. An error that it does not meet is said by its rank, some seconds later; so is
// each where nobody ends the others: before comm_open, under srun without --kill-on-bad-exit.
static inline void comm_options_begin(comm_t* c) {
    comm_who_am_i(c);
    log_alike = 1;
}
static inline void comm_options_end(void) { log_alike = 0; }

// Returns when all processes are there. From here on an error in one rank ends all.
static inline void comm_open(comm_t* c) {
    if (c->time_limit <= 0) c->time_limit = COMM_TIME_LIMIT;
    launcher_t launcher = comm_who_am_i(c);
    comm_take_cores(&launcher);
#ifndef USE_CUDA
    if (c->bf16) fatal("gradients travel as bf16 between GPUs only; leave that flag away");
#endif
    if (c->size > 1) comm_transport_open(c, &launcher);
}

// To be called behind device_open, before any collective.
static inline void comm_attach(comm_t* c, stream_t s) {
    if (c->size == 1) return;
    comm_transport_attach(c, s);
#ifdef USE_CUDA
    comm_beside_open(c, s);
    if (c->bf16) comm_buckets_open(c, s);
#endif
}

// This process leaves in peace. One that ends without it has failed, and ends the others.
static inline void comm_close(comm_t* c) {
#ifdef USE_CUDA
    if (c->buckets) comm_buckets_close(c);
    if (c->beside) comm_beside_close(c);
#endif
    if (c->size > 1) comm_transport_close(c);
    c->size = c->local_size = log_size = 1;
    c->rank = log_rank = 0;
}

// values <- the mean of all ranks' values. In place, in the order of the stream.
static inline void comm_mean(comm_t* c,      //
                             floatS* values, // (n) device memory
                             size_t n, stream_t s) {
    if (c->size == 1 || n == 0) return;
#ifdef USE_CUDA
    if (c->bf16 && n >= COMM_BF16_LEAST) {
        comm_mean_bf16(c, values, n, s);
        return;
    }
#endif
    comm_transport_mean(c, values, n, s);
}

// comm_mean beside what the stream does after this: to begin with what the stream has done, until comm_mean_end. Values
// that are on their way are neither read nor written. On a CPU it is comm_mean.
static inline void comm_mean_begin(comm_t* c,      //
                                   floatS* values, // (n) device memory
                                   size_t n, stream_t s) {
    if (c->size == 1 || n == 0) return;
#ifdef USE_CUDA
    s = comm_beside_begin(c, s);
#endif
    comm_mean(c, values, n, s);
}

// From here on the stream has the results of all that was begun.
static inline void comm_mean_end(comm_t* c, stream_t s) {
#ifdef USE_CUDA
    if (c->size > 1) comm_beside_end(c, s);
#else
    (void)c, (void)s;
#endif
}

// The part of this rank, values[rank * shard] to values[(rank + 1) * shard], becomes the mean of all ranks' values
// there. The rest is undefined afterwards.
static inline void comm_reduce_scatter_mean(comm_t* c,
                                            floatS* values, // (size, shard) device memory
                                            size_t shard, stream_t s) {
    if (c->size > 1 && shard) comm_transport_scatter(c, values, shard, s);
}

// Every rank has its part, bytes rank * shard to (rank + 1) * shard; afterwards each has all parts.
static inline void comm_all_gather(comm_t* c,
                                   void* values, // (size, shard bytes) device memory
                                   size_t shard_bytes, stream_t s) {
    if (c->size > 1 && shard_bytes) comm_transport_gather(c, values, shard_bytes, s);
}

// Rank 0's bytes go to all.
static inline void comm_broadcast(comm_t* c,
                                  void* p, // (bytes) device memory
                                  size_t bytes, stream_t s) {
    if (c->size > 1 && bytes) comm_transport_broadcast(c, p, bytes, s);
}

// values <- the sum of all ranks' values, the same bits on all. On the host, and it returns when that is done.
static inline void comm_sum_host(comm_t* c,
                                 double* values, // [n] host memory
                                 int n) {
    for (int at = 0; c->size > 1 && at < n; at += COMM_SUMS) {
        comm_transport_sum(c, values + at, n - at < COMM_SUMS ? n - at : COMM_SUMS);
    }
}

// The same for floats, in double on the way: exact where one rank has a value and all others zero.
static inline void comm_sum_floats_host(comm_t* c,
                                        floatS* values, // [n] host memory
                                        size_t n) {
    if (c->size == 1) return;
    double* piece = (double*)malloc_check(COMM_SUMS * sizeof(double), "values to sum");
    for (size_t at = 0; at < n; at += COMM_SUMS) {
        int count = n - at < COMM_SUMS ? (int)(n - at) : COMM_SUMS;
        for (int i = 0; i < count; i++) piece[i] = values[at + i];
        comm_sum_host(c, piece, count);
        for (int i = 0; i < count; i++) values[at + i] = (floatS)piece[i];
    }
    free(piece);
}

// Returns when all ranks have come, however long one of them has to work for it; one that ends still ends all.
static inline void comm_wait_for_all(comm_t* c) {
    double limit = c->time_limit, nothing = 0;
    c->time_limit = INFINITY;
    comm_sum_host(c, &nothing, 1);
    c->time_limit = limit;
}

// Has any rank set its flag? On the host, the same answer on all; also a barrier.
static inline int comm_any(comm_t* c, int flag) {
    double set = flag != 0;
    comm_sum_host(c, &set, 1);
    return set != 0;
}

// The machines of some ranks, as text: "3 (gpu007), 5 (gpu008)". All ranks call it.
static inline void comm_name_ranks(comm_t* c,
                                   const char* chosen, // [size]
                                   char* text, size_t size) {
    enum { NAME = 64 };
    double* names = (double*)calloc_check((size_t)c->size * NAME, sizeof(double), "names of machines");
    char mine[NAME] = "";
    size_t used = 0;
    gethostname(mine, sizeof mine - 1);
    for (int i = 0; i < NAME; i++) names[c->rank * NAME + i] = (unsigned char)mine[i];
    comm_sum_host(c, names, c->size * NAME);
    text[0] = 0;
    for (int r = 0; r < c->size && used + NAME + 24 < size; r++) {
        if (!chosen[r]) continue;
        for (int i = 0; i < NAME; i++) mine[i] = (char)names[r * NAME + i];
        used += (size_t)snprintf(text + used, size - used, "%s%d (%s)", used ? ", " : "", r, mine);
    }
    free(names);
}

// Ends all ranks when a hash of their weights is not the same on all. Those that differ from most are named; where
// there is no most, all.
static inline void comm_check_same(comm_t* c, uint64_t hash, int64_t step) {
    double* halves = (double*)calloc_check(2 * (size_t)c->size, sizeof(double), "hashes"); // exact in a double
    char* odd = (char*)calloc_check((size_t)c->size, 1, "ranks");
    halves[2 * c->rank] = (double)(hash >> 32);
    halves[2 * c->rank + 1] = (double)(hash & 0xFFFFFFFFu);
    comm_sum_host(c, halves, 2 * c->size);
    int most = 0, like = 0, differ = 0;
    for (int r = 0; r < c->size; r++) {
        int same = 0;
        for (int k = 0; k < c->size; k++) same += !memcmp(halves + 2 * k, halves + 2 * r, 2 * sizeof(double));
        if (same > most) most = same, like = r;
    }
    for (int r = 0; r < c->size; r++) {
        odd[r] = most * 2 <= c->size || memcmp(halves + 2 * r, halves + 2 * like, 2 * sizeof(double)) != 0;
        differ += odd[r];
    }
    if (most < c->size) {
        char text[4096];
        comm_name_ranks(c, odd, text, sizeof text);
        if (!comm_is_first(c)) comm_wait_for_all(c); // rank 0 says it once, and its end is that of all
        fatal("step %lld: the weights of the ranks are no longer the same bits: rank%s %s differ%s from %s. Nothing "
              "was saved, and the last checkpoint is good. Look at memory and driver of the machine, and go on without "
              "it",
              (long long)step, differ > 1 ? "s" : "", text, differ > 1 ? "" : "s",
              most * 2 <= c->size ? "one another" : "the others");
    }
    free(halves);
    free(odd);
}
