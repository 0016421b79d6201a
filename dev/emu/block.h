// block.h: how the threads of a block run: one after the other, on one core, each until it must wait.
//
// A thread that waits for nobody runs on the stack of the one before it, so a kernel without barriers costs a loop. A
// thread that waits keeps its stack (a fiber) and the next one gets another. Which thread comes next is decided by
// emu_set_order: the first that can run, or a random one; a correct kernel gives the same bits in every order. When
// nobody can run and somebody waits, the barrier or collective can never be completed: that is reported with who is
// missing.
//
// Time counts the barriers: dev/emu/shared.h orders accesses to shared memory by it.
// Look next at dev/emu/warp.h.
#pragma once
// defines: emu, emu_thread, emu_report, EMU_HERE
#include "dev/emu/state.h"
// defines: emu_begin_shared, emu_drop_copies
#include "dev/emu/shared.h"
// defines: emu_open, emu_close, emu_is_no_device_memory
#include "dev/emu/runtime.h"

// ---- deadlocks ------------------------------------------------------------------------------------------------------

// The lanes that have not arrived in the collective that thread t waits in. (A lane may wait in one of other lanes.)
static inline uint32_t emu_missing_lanes(int t) {
    uint32_t mask = emu.thread[t].mask, missing = mask & ~emu.warp[t / 32].waiting;
    if (missing) return missing;
    for (int i = 0; i < 32; i++) if (mask >> i & 1 && emu.thread[t / 32 * 32 + i].mask != mask) missing |= 1u << i;
    return missing;
}

// What thread t waits for, in words.
static inline emu_text emu_whereabouts(int t) {
    emu_text text;
    emu_thread* thread = &emu.thread[t];
    const char* at = emu.state[t] == EMU_AT_BARRIER ? "__syncthreads" : thread->collective;
    if (emu.state[t] == EMU_DONE) snprintf(text.s, sizeof text.s, "has finished the kernel");
    else snprintf(text.s, sizeof text.s, "waits at %.24s, %.50s:%d", at, thread->file, thread->line);
    return text;
}

// Nobody can run and somebody waits.
[[noreturn]] static inline void emu_report_deadlock(void) {
    for (int t = 0; t < emu.threads; t++) {
        if (emu.state[t] != EMU_IN_COLLECTIVE) continue;
        emu.current = t;
        emu_thread* thread = &emu.thread[t];
        uint32_t missing = emu_missing_lanes(t);
        int other = t / 32 * 32 + __builtin_ctz(missing);
        emu_report("warp collective not reached by all lanes of its mask", "%s, %s:%d, waits for lanes 0x%08x: %s %s",
                   thread->collective, thread->file, thread->line, missing, emu_thread_name(other).s,
                   emu_whereabouts(other).s);
    }
    int waits = 0, other = 0;
    while (emu.state[waits] != EMU_AT_BARRIER) waits++;
    while (emu.state[other] == EMU_AT_BARRIER) other++;
    emu.current = waits;
    emu_report("barrier not reached by all threads", "%d of %d wait at __syncthreads, %s:%d; %s %s", emu.at_barrier,
               emu.threads, emu.thread[waits].file, emu.thread[waits].line, emu_thread_name(other).s,
               emu_whereabouts(other).s);
}

// ---- order ----------------------------------------------------------------------------------------------------------

// 0: threads and blocks in order. Else an order that is new at each choice, and the same for the same seed. A program
// that does not call this takes the environment's EMU_ORDER.
static inline void emu_set_order(uint64_t seed) {
    emu.order = seed;
    emu.random = seed * 0x9e3779b97f4a7c15ull;
    emu.order_set = true;
}

static inline uint64_t emu_random(void) {
    emu.random ^= emu.random << 13;
    emu.random ^= emu.random >> 7;
    return emu.random ^= emu.random << 17;
}

static inline void emu_make_ready(int t) {
    emu.state[t] = EMU_READY;
    emu.ready[t / 64] |= 1ull << (t % 64);
    emu.ready_count++;
}

// Takes a thread that can run: the first from a random place on.
static inline int emu_pick(void) {
    int words = (emu.threads + 63) / 64;
    int start = emu.order ? (int)((emu_random() >> 32) * (uint64_t)emu.threads >> 32) : 0;
    int w = start / 64;
    uint64_t bits = emu.ready[w] & ~0ull << (start % 64);
    while (!bits) {
        w = w + 1 < words ? w + 1 : 0;
        bits = emu.ready[w];
    }
    int t = w * 64 + __builtin_ctzll(bits);
    emu.ready[w] &= ~(1ull << (t % 64));
    emu.ready_count--;
    return t;
}

// ---- running --------------------------------------------------------------------------------------------------------

// The life of a stack: threads that begin on it, one behind the other.
[[noreturn]] static void emu_fiber_main(void) {
    emu_after_switch();
    for (;;) {
        int t = emu.current;
        emu.call(emu.arguments);
        if (emu.thread[t].copy_count) emu_drop_copies(&emu.thread[t]);
        emu.state[t] = EMU_DONE;
        emu.alive--;
        emu_fiber* to = &emu_host_fiber;
        if (emu.ready_count) {
            emu.current = emu_pick();
            threadIdx = emu.thread[emu.current].index;
            to = emu.thread[emu.current].fiber;
            emu.thread[emu.current].fiber = NULL;
            if (!to) continue; // a thread that begins: here
        } else if (emu.alive) {
            emu_report_deadlock();
        }
        emu_leave_fiber(emu_this_fiber);
        emu_switch_to(to);
    }
}

// The current thread stops here, until it is ready and picked.
static inline void emu_yield(void) {
    int self = emu.current;
    if (!emu.ready_count) emu_report_deadlock();
    int next = emu_pick();
    if (next == self) return;
    emu_fiber* to = emu.thread[next].fiber;
    if (!to) to = emu_take_fiber(emu_fiber_main);
    emu.thread[self].fiber = emu_this_fiber;
    emu.thread[next].fiber = NULL;
    emu.current = next;
    threadIdx = emu.thread[next].index;
    emu_switch_to(to);
}

static inline void emu_make_all_ready(void) {
    for (int w = 0; w * 64 < emu.threads; w++) {
        int rest = emu.threads - w * 64;
        emu.ready[w] = rest >= 64 ? ~0ull : (1ull << rest) - 1;
    }
    emu.ready_count = emu.threads;
}

static inline void __syncthreads(EMU_HERE) {
    int t = emu.current;
    emu.state[t] = EMU_AT_BARRIER;
    emu.thread[t].file = file;
    emu.thread[t].line = line;
    if (emu.at_barrier++ == 0) {
        emu.barrier_file = file;
        emu.barrier_line = line;
    } else if (emu.barrier_line != line || (emu.barrier_file != file && strcmp(emu.barrier_file, file))) {
        emu_report("threads of one block wait at different barriers", "this one at %s:%d, others at %s:%d", file, line,
                   emu.barrier_file, emu.barrier_line);
    }
    if (emu.at_barrier == emu.threads) {
        emu.at_barrier = 0;
        emu.barrier_time = ++emu.time;
        memset(emu.state, EMU_READY, emu.threads);
        emu_make_all_ready();
    }
    emu_yield();
}

static inline void emu_run_block(uint3 index) {
    blockIdx = index;
    emu_begin_shared(emu.shared_bytes);
    emu.alive = emu.threads;
    emu.at_barrier = 0;
    memset(emu.state, EMU_NEW, emu.threads);
    emu_make_all_ready();
    emu.current = emu_pick();
    threadIdx = emu.thread[emu.current].index;
    emu_switch_to(emu_take_fiber(emu_fiber_main));
}

// Every block of a grid. With an order, blocks run in steps of a stride that has no factor in common with their number.
static inline void emu_run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, size_t most_shared,
                           void (*call)(void*), void* arguments) {
    size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
    if (emu.kernel) emu_report("a kernel launches a kernel", "%s", name);
    emu.kernel = name; // for the reports
    emu.current = 0;
    emu.thread[0].index = {0, 0, 0};
    blockIdx = {0, 0, 0};
    if (threads < 1 || threads > EMU_MOST_THREADS || block.z > 64) {
        emu_report("bad block size", "(%u,%u,%u) threads; 1 to 1024 are possible, z up to 64", block.x, block.y,
                   block.z);
    }
    if (blocks < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        emu_report("bad grid size", "(%u,%u,%u) blocks; x must be 1 to 2^31 - 1, y and z 1 to 65535", grid.x, grid.y,
                   grid.z);
    }
    if (shared_bytes > most_shared) {
        emu_report("too much shared memory", "%zu bytes asked for, of %zu that a block can have", shared_bytes,
                   most_shared);
    }
    if (!emu.order_set) emu_set_order(getenv("EMU_ORDER") ? strtoull(getenv("EMU_ORDER"), NULL, 10) : 0);
    emu.launches++;
    emu.call = call;
    emu.arguments = arguments;
    emu.threads = (int)threads;
    emu.shared_bytes = shared_bytes;
    blockDim = block;
    gridDim = grid;
    for (unsigned t = 0; t < threads; t++) {
        emu.thread[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    }
    size_t stride = 1, b = 0;
    if (emu.order) {
        stride = 1 + emu_random() % blocks;
        for (size_t x = stride, y = blocks, z; ; stride++, x = stride, y = blocks) {
            while (y) { z = x % y; x = y; y = z; }
            if (x == 1) break;
        }
        b = emu_random() % blocks;
    }
    emu_open();
    for (size_t i = 0; i < blocks; i++, b = (b + stride) % blocks) {
        emu_run_block({(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)});
    }
    emu_close();
    emu.kernel = NULL;
}

// The kernel's name out of __PRETTY_FUNCTION__: "... [with auto kernel = name<4>; ...", or "... [kernel = &name, ...".
static inline const char* emu_kernel_name(const char* pretty) {
    const char* from = strstr(pretty, "kernel = ");
    from = from ? from + strlen("kernel = ") : pretty;
    if (*from == '&') from++;
    size_t n = 0;
    for (int depth = 0; from[n]; n++) {
        if (from[n] == '<' || from[n] == '(') depth++;
        if (from[n] == '>' || from[n] == ')') depth--;
        if (depth == 0 && strchr(";,]", from[n])) break;
        if (depth == 1 && from[n] == '(') break; // the parameters' types
    }
    char* name = (char*)malloc(n + 1);
    memcpy(name, from, n);
    name[n] = 0;
    return name;
}

template <typename T> static inline void emu_check_argument(const char* kernel, const T& argument) {
    if constexpr (std::is_pointer_v<T>) {
        if (emu_is_no_device_memory(argument)) {
            emu_report("a kernel is given a pointer that is not to device memory",
                       "%p, to %s; the host's memory, or freed", (const void*)argument, kernel);
        }
    }
    (void)kernel, (void)argument;
}

template <auto kernel, typename Stream, typename... A>
static inline void launch(dim3 grid, dim3 block, size_t shared_bytes, Stream s, A... arguments) {
    static const char* name = emu_kernel_name(__PRETTY_FUNCTION__);
    (emu_check_argument(name, arguments), ...);
    auto call = [&] { kernel(arguments...); };
    emu_run(name, grid, block, shared_bytes, (size_t)s->shared_bytes, [](void* c) { (*(decltype(call)*)c)(); }, &call);
}
