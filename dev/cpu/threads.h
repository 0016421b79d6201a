// threads.h: when an operation is shared among threads, and the memory that each thread works in.
//
// Sharing a loop costs a call to the other threads and a wait for the last of them. Where all cores are idle that is
// some microseconds. Where another program holds one of the cores, a thread may have to wait for its turn, and all
// others wait with it, a millisecond or more: a network of small loops then runs many times slower on two threads than
// on one. Two things keep that away. A loop says how much work it is, and only what is worth it is shared:
//
//     #pragma omp parallel for if (worth_sharing(N * C))
//
// Results never depend on it: no sum is cut by the number of threads. And a thread that waits soon sleeps, below.
#pragma once
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

// defines: device_malloc, device_free, calloc_check
#include "common/device.h"

// `work` is about what one thread does in a nanosecond: one value read, added to and written; half of an exp; 50
// multiply-accumulates of a matrix product.
#ifndef WORK_TO_SHARE // tests of operations set it to 0, so that their small sizes are shared too
#define WORK_TO_SHARE 50000.0
#endif
#define WORK_OF_EXP 2.0
#define MACS_OF_WORK 50.0
static inline int worth_sharing(double work) { return work >= WORK_TO_SHARE; }

// A waiting thread of libgomp spins for milliseconds before it sleeps. On a shared core that burns the time that the
// thread it waits for should have, and its own, which it lacks when it is needed. About a hundred microseconds, what a
// sleep and a waking cost, are never far from the best choice. libgomp reads GOMP_SPINCOUNT when it is loaded: so the
// program sets it and starts itself again, once. (argv: glibc passes main's to constructors.)
__attribute__((constructor)) static void threads_wait_briefly(int argc, char** argv) {
    (void)argc;
#if defined(__GLIBC__) && !defined(__clang__)
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || omp_get_max_threads() == 1) return;
    char path[4096]; // its own, not /proc/self/exe: that would be the name which ps and pkill know it by
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    setenv("GOMP_SPINCOUNT", "4000", 1);
    execv(path, argv); // where it fails, threads spin
#else
    (void)argv;
#endif
}

enum { SCRATCH_SLOTS = 6 };

typedef struct {
    void* memory[SCRATCH_SLOTS];
    size_t size[SCRATCH_SLOTS];
} cpu_scratch_t;

static pthread_key_t cpu_scratch_key; // gives a thread's working memory back when the thread ends
static inline void cpu_scratch_free(void* thread_memory) {
    cpu_scratch_t* scratch = (cpu_scratch_t*)thread_memory;
    for (int i = 0; i < SCRATCH_SLOTS; i++) device_free(scratch->memory[i]);
    free(scratch);
}
__attribute__((constructor)) static void cpu_scratch_start(void) {
    pthread_key_create(&cpu_scratch_key, cpu_scratch_free);
}

// Working memory of the calling thread, kept and grown as needed: so a training loop allocates in its first step only.
// An operation that needs several buffers at once uses several slots; what is in a slot is lost when the operation
// ends. The last slot is gemm's own.
static inline void* cpu_scratch(int slot, size_t bytes) {
    static __thread cpu_scratch_t* scratch;
    if (!scratch) {
        scratch = (cpu_scratch_t*)calloc_check(1, sizeof *scratch, "a thread's working memory");
        pthread_setspecific(cpu_scratch_key, scratch);
    }
    if (bytes > scratch->size[slot]) {
        device_free(scratch->memory[slot]);
        scratch->memory[slot] = device_malloc(bytes, "a CPU operation's working memory");
        scratch->size[slot] = bytes;
    }
    return scratch->memory[slot];
}
