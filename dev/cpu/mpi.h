// mpi.h: the collectives of common/training/comm.h over MPI, for the CPU build and the emulator.
//
//     make MPI=1, and then:  mpirun -np 4 --bind-to none ./train_tokenizer ...
//     mpirun as root wants --allow-run-as-root; more ranks than cores, --oversubscribe. --bind-to none lets each rank
//     use more than one core: divide them yourself by OMP_NUM_THREADS. Who stops mpirun (Ctrl-C, SIGTERM) gives the
//     ranks a second to save; with --mca odls_base_sigkill_timeout 60, a minute.
//
// Every rank owns one share of the values, as in the sharded optimiser. For the mean, each sends every share to its
// owner, who adds what it gets in the order of the ranks, in double, and divides once; then each sends its share to
// all. So the bits depend on the number of ranks only, not on how MPI goes about it or on how the values are shared
// out, and each rank sends 2 (R-1)/R n values, which is the least. Data go in pieces, by way of host memory.
//
// MPI's blocking calls would wait for ever for a rank that does not come. Hence the others, and a clock. When a process
// dies, mpirun says which and ends the rest.
// Look next at common/cuda/nccl.cuh, the same for GPUs.
#pragma once
#define OMPI_SKIP_MPICXX 1  // the C functions are all that is wanted
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>

// defines: comm_t, comm_begin, comm_late
#include "common/training/comm.h"

#ifndef COMM_PIECE
#define COMM_PIECE ((size_t)1 << 18) // values that go to a rank at once
#endif

struct comm_transport {
    MPI_Request* requests;   // (2 size)
    int pending;
    floatS *sent, *received; // (size, COMM_PIECE) host memory
};

static inline void comm_mpi_check(int status, const char* call) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(status, text, &length);
    fatal("%s failed: %s", call, text);
}
#define COMM_MPI_CHECK(call) comm_mpi_check((call), #call)

static inline void comm_mpi_abort(void) { MPI_Abort(MPI_COMM_WORLD, 1); }

static inline void comm_transport_open(comm_t* c, const launcher_t* l) {
    COMM_MPI_CHECK(MPI_Init(NULL, NULL));
    COMM_MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    int rank = 0, size = 0;
    COMM_MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    COMM_MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &size));
    if (rank != l->rank || size != l->size) {
        fatal("%s started this process as rank %d of %d, but for MPI it is rank %d of %d. Start it by the mpirun of "
              "the MPI that it was built with", l->name, l->rank, l->size, rank, size);
    }
    struct comm_transport* t = (struct comm_transport*)calloc_check(1, sizeof *t, "MPI");
    t->requests = (MPI_Request*)malloc_check(2 * (size_t)size * sizeof *t->requests, "MPI");
    t->sent = (floatS*)malloc_check((size_t)size * COMM_PIECE * sizeof(floatS), "MPI");
    t->received = (floatS*)malloc_check((size_t)size * COMM_PIECE * sizeof(floatS), "MPI");
    c->transport = t;
    log_on_fatal = comm_mpi_abort;
}

static inline void comm_transport_attach(comm_t* c, stream_t s) { (void)c, (void)s; }

static inline void comm_transport_close(comm_t* c) {
    MPI_Finalize();
    log_on_fatal = NULL;
    free(c->transport->requests);
    free(c->transport->sent);
    free(c->transport->received);
    free(c->transport);
    c->transport = NULL;
}

// Queues a message to, or from, rank k.
static inline void comm_mpi_send(comm_t* c, const void* data, int bytes, int k) {
    COMM_MPI_CHECK(
        MPI_Isend(data, bytes, MPI_BYTE, k, 0, MPI_COMM_WORLD, &c->transport->requests[c->transport->pending++]));
}
static inline void comm_mpi_receive(comm_t* c, void* data, int bytes, int k) {
    COMM_MPI_CHECK(
        MPI_Irecv(data, bytes, MPI_BYTE, k, 0, MPI_COMM_WORLD, &c->transport->requests[c->transport->pending++]));
}

// Returns when everything queued is done.
static inline void comm_mpi_wait(comm_t* c) {
    struct comm_transport* t = c->transport;
    int done = 0;
    for (int tries = 0; !done; tries++) {
        COMM_MPI_CHECK(MPI_Testall(t->pending, t->requests, &done, MPI_STATUSES_IGNORE));
        if (done) break;
        if (tries < 1000) sched_yield();
        else usleep(100); // the rank that is awaited may need this core
        if (clock_seconds() - c->since > c->time_limit) comm_late(c);
    }
    t->pending = 0;
}

// Of n things in shares of `shard`: how many rank k owns behind its first `begin`, at most `most`.
static inline size_t comm_mpi_piece(size_t n, size_t shard, int k, size_t begin, size_t most) {
    size_t first = (size_t)k * shard + begin, last = (size_t)(k + 1) * shard < n ? (size_t)(k + 1) * shard : n;
    if (first >= last) return 0;
    return last - first < most ? last - first : most;
}

// This rank's share becomes the mean.
static inline void comm_mpi_scatter(comm_t* c, floatS* values, size_t n, size_t shard) {
    floatS *sent = c->transport->sent, *received = c->transport->received;
    for (size_t begin = 0; begin < shard; begin += COMM_PIECE) {
        size_t own = comm_mpi_piece(n, shard, c->rank, begin, COMM_PIECE);
        for (int k = 0; k < c->size; k++) {
            size_t theirs = comm_mpi_piece(n, shard, k, begin, COMM_PIECE);
            if (theirs) copy_to_host(sent + k * COMM_PIECE, values + k * shard + begin, theirs * sizeof(floatS), 0);
            if (k == c->rank) continue;
            comm_mpi_receive(c, received + k * COMM_PIECE, (int)(own * sizeof(floatS)), k);
            comm_mpi_send(c, sent + k * COMM_PIECE, (int)(theirs * sizeof(floatS)), k);
        }
        comm_mpi_wait(c);
        if (!own) continue;
        floatS* mean = sent + c->rank * COMM_PIECE; // this rank's part lies there
        for (size_t i = 0; i < own; i++) {
            double sum = 0;
            for (int k = 0; k < c->size; k++) sum += k == c->rank ? mean[i] : received[k * COMM_PIECE + i];
            mean[i] = (floatS)(sum / c->size);
        }
        copy_to_device(values + c->rank * shard + begin, mean, own * sizeof(floatS), 0);
    }
}

// Each rank's share of the bytes goes to all.
static inline void comm_mpi_gather(comm_t* c, char* bytes, size_t n, size_t shard) {
    const size_t most = COMM_PIECE * sizeof(floatS);
    char *sent = (char*)c->transport->sent, *received = (char*)c->transport->received;
    for (size_t begin = 0; begin < shard; begin += most) {
        size_t own = comm_mpi_piece(n, shard, c->rank, begin, most);
        if (own) copy_to_host(sent, bytes + c->rank * shard + begin, own, 0);
        for (int k = 0; k < c->size; k++) {
            if (k == c->rank) continue;
            comm_mpi_receive(c, received + k * most, (int)comm_mpi_piece(n, shard, k, begin, most), k);
            comm_mpi_send(c, sent, (int)own, k);
        }
        comm_mpi_wait(c);
        for (int k = 0; k < c->size; k++) {
            size_t theirs = comm_mpi_piece(n, shard, k, begin, most);
            if (theirs && k != c->rank) copy_to_device(bytes + k * shard + begin, received + k * most, theirs, 0);
        }
    }
}

static inline void comm_transport_scatter(comm_t* c, floatS* values, size_t shard, stream_t s) {
    comm_begin(c, "comm_reduce_scatter_mean", c->size * shard * sizeof(floatS));
    stream_wait(s);
    comm_mpi_scatter(c, values, c->size * shard, shard);
}

static inline void comm_transport_gather(comm_t* c, void* values, size_t shard, stream_t s) {
    comm_begin(c, "comm_all_gather", c->size * shard);
    stream_wait(s);
    comm_mpi_gather(c, (char*)values, c->size * shard, shard);
}

static inline void comm_transport_mean(comm_t* c, floatS* values, size_t n, stream_t s) {
    comm_begin(c, "comm_mean", n * sizeof(floatS));
    stream_wait(s);
    size_t shard = (n + c->size - 1) / c->size;
    comm_mpi_scatter(c, values, n, shard);
    comm_mpi_gather(c, (char*)values, n * sizeof(floatS), shard * sizeof(floatS));
}

static inline void comm_transport_broadcast(comm_t* c, void* p, size_t bytes, stream_t s) {
    const size_t most = COMM_PIECE * sizeof(floatS);
    char* piece = (char*)c->transport->sent;
    comm_begin(c, "comm_broadcast", bytes);
    stream_wait(s);
    for (size_t begin = 0; begin < bytes; begin += most) {
        size_t count = bytes - begin < most ? bytes - begin : most;
        if (c->rank == 0) copy_to_host(piece, (char*)p + begin, count, 0);
        for (int k = 1; k < c->size && c->rank == 0; k++) comm_mpi_send(c, piece, (int)count, k);
        if (c->rank > 0) comm_mpi_receive(c, piece, (int)count, 0);
        comm_mpi_wait(c);
        if (c->rank > 0) copy_to_device((char*)p + begin, piece, count, 0);
    }
}

static inline void comm_transport_sum(comm_t* c, double* values, int n) {
    size_t bytes = (size_t)n * sizeof(double);
    double* all = (double*)malloc_check(c->size * bytes, "sums");
    comm_begin(c, "comm_sum_host", bytes);
    memcpy(all + (size_t)c->rank * n, values, bytes);
    for (int k = 0; k < c->size; k++) {
        if (k == c->rank) continue;
        comm_mpi_receive(c, all + (size_t)k * n, (int)bytes, k);
        comm_mpi_send(c, all + (size_t)c->rank * n, (int)bytes, k);
    }
    comm_mpi_wait(c);
    for (int i = 0; i < n; i++) {
        values[i] = 0;
        for (int k = 0; k < c->size; k++) values[i] += all[(size_t)k * n + i];
    }
    free(all);
}
