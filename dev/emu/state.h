// state.h: what the emulator knows of the launch, the block and the threads that run; and how it reports a mistake.
//
// All of it is one structure, `emu`: the kernels' text has no place for an argument. The files behind this one only go
// one way: shared memory (shared.h) and the CUDA runtime with device memory (runtime.h) check accesses by what stands
// here; block.h runs the threads and tells both when a block begins and ends.
// Look next at dev/emu/shared.h.
#pragma once
#include <stdarg.h>
// defines: blockIdx
#include "dev/emu/types.h"
// defines: emu_fiber
#include "dev/emu/fiber.h"

enum { EMU_MOST_THREADS = 1024, EMU_MOST_WARPS = 32, EMU_SHARED_BYTES = 232448 };
enum emu_state : uint8_t { EMU_NEW, EMU_READY, EMU_AT_BARRIER, EMU_IN_COLLECTIVE, EMU_DONE };

// Where a kernel's source calls the emulator: two trailing parameters, with the place of the call as their default.
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct emu_copy { // one cp_async_16 that has not arrived
    int64_t to;   // byte of shared memory
    const void* from;
    bool valid;
    unsigned group;
};

struct emu_thread {
    emu_fiber* fiber;        // where it waits
    uint3 index;
    const char* file;        // what it waits at
    int line;
    const char* collective;  // name of the warp collective, its mask, and what this lane brings
    uint32_t mask;
    void* record;
    emu_copy* copies;
    unsigned copy_count, copy_room, group; // `group`: of the copies since the last commit
};

struct emu_warp {
    uint32_t waiting;      // lanes that wait in a collective
    uint32_t alike;        // of these, some that wait in the same one: that of the lane that came last
    uint32_t synchronised; // time of the last __syncwarp of all lanes
    uint32_t pair[32][32]; // time of the last __syncwarp of these two
};

struct emu_t {
    // the launch
    const char* kernel;           // its name, NULL outside of kernels
    void (*call)(void* arguments);
    void* arguments;
    int threads;                  // of a block
    size_t shared_bytes;
    uint64_t order, random;       // emu_set_order
    bool order_set;
    // the block
    emu_thread thread[EMU_MOST_THREADS];
    emu_state state[EMU_MOST_THREADS];
    emu_warp warp[EMU_MOST_WARPS];
    uint64_t ready[EMU_MOST_THREADS / 64]; // a bit for each thread that can run
    int ready_count, alive, at_barrier;
    int current;                  // the thread that runs
    uint32_t time, block_time, barrier_time; // time moves at barriers; when the block began, and its last barrier
    const char* barrier_file;
    int barrier_line;
    // counters
    size_t allocations, synchronisations, float_atomics, launches;
};
inline emu_t emu;

// ---- reports --------------------------------------------------------------------------------------------------------

struct emu_text { char s[96]; };
static inline emu_text emu_thread_name(int t) {
    emu_text name;
    uint3 i = emu.thread[t].index;
    snprintf(name.s, sizeof name.s, "thread (%u,%u,%u)", i.x, i.y, i.z);
    return name;
}

// " in kernel k, block (x,y,z), thread (x,y,z)"
static inline void emu_print_place(FILE* f) {
    if (!emu.kernel) return;
    fprintf(f, " in kernel %s, block (%u,%u,%u), %s", emu.kernel, blockIdx.x, blockIdx.y, blockIdx.z,
            emu_thread_name(emu.current).s);
}

// Says what is wrong, where, and ends the program.
[[noreturn]] __attribute__((noinline, format(printf, 2, 3))) static void emu_report(const char* what,
                                                                                    const char* format, ...) {
    va_list list;
    va_start(list, format);
    fflush(stdout);
    fprintf(stderr, "emulator: %s", what);
    emu_print_place(stderr);
    fprintf(stderr, ": ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    fflush(stderr);
    va_end(list);
    abort();
}
