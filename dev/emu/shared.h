// shared.h: the shared memory of a block, with a memory of its own of who did what to it.
//
// shared<T> is what T* is on a GPU. It knows the array that it came from; an element read or written through it is
// checked: inside the array, aligned, written since the block began (a block finds the bytes 0xff, which are NaN), and
// not in a race. A race is two accesses, one of them a write, by two threads that no barrier stands between:
// __syncthreads, or __syncwarp inside a warp. (Shuffles and votes do not order memory, says the CUDA programming guide,
// so they do not here.)
//
// For every two bytes the last writer and the readers since are kept, with the time, which is a count of barriers. Of
// several readers that nothing has ordered only "several lanes of this warp" or "several warps" is remembered, which
// suffices: the next write must then come behind a barrier of all of these. Times grow from block to block, so nothing
// is cleared between.
//
// cp_async_16 reserves its 16 bytes at once (any access before the wait is an error) and copies at the wait.
// Look next at dev/emu/runtime.h.
#pragma once
// defines: emu, emu_report
#include "dev/emu/state.h"

#define EMU_UNCHECKED __attribute__((no_sanitize("address"), no_sanitize("undefined")))

struct emu_cell { // two bytes of shared memory
    uint32_t written, read;  // times
    uint16_t writer, reader; // threads, or one of:
};
enum { EMU_WARP_OF_READERS = 1024, EMU_MANY_READERS = 2000, EMU_ATOMIC_WRITER = 3000 };
static const uint32_t EMU_PENDING = 0xffffffffu; // `written` while a cp_async_16 is under way

inline unsigned char* emu_shared;
inline emu_cell* emu_cells;

static inline void emu_begin_shared(size_t bytes) {
    if (!emu_shared) {
        emu_shared = (unsigned char*)aligned_alloc(128, EMU_SHARED_BYTES);
        emu_cells = (emu_cell*)calloc(EMU_SHARED_BYTES / 2, sizeof *emu_cells);
    }
    if (emu.time > 0xf0000000u) { // after weeks
        memset(emu_cells, 0, EMU_SHARED_BYTES / 2 * sizeof *emu_cells);
        memset(emu.warp, 0, sizeof emu.warp);
        emu.time = 0;
    }
    emu.block_time = emu.barrier_time = ++emu.time;
    memset(emu_shared, 0xff, bytes);
}

// Is what thread p (or the readers p) did at `time` over before what the current thread does here?
EMU_UNCHECKED static inline bool emu_before(int p, uint32_t time) {
    int q = emu.current, warp = q / 32;
    if (time < emu.barrier_time || p == q) return true;
    bool by_warp = time < emu.warp[warp].synchronised;
    if (p < EMU_MOST_THREADS) return p / 32 == warp && (by_warp || time < emu.warp[warp].pair[p % 32][q % 32]);
    return p == EMU_WARP_OF_READERS + warp && by_warp;
}

static inline emu_text emu_party(int p) {
    emu_text text;
    if (p < EMU_MOST_THREADS) return emu_thread_name(p);
    if (p == EMU_MANY_READERS) snprintf(text.s, sizeof text.s, "several warps");
    else if (p == EMU_ATOMIC_WRITER) snprintf(text.s, sizeof text.s, "an atomic operation");
    else snprintf(text.s, sizeof text.s, "several lanes of warp %d", p - EMU_WARP_OF_READERS);
    return text;
}

#define EMU_REPORTS [[noreturn]] __attribute__((noinline)) static
EMU_REPORTS void emu_report_race(emu_cell* c, int p, const char* did, const char* does) {
    emu_report("race in shared memory",
               "this thread %s here what %s %s, with no barrier between (byte %td of shared memory)", does,
               emu_party(p).s, did, (c - emu_cells) * 2);
}
EMU_REPORTS void emu_report_pending(emu_cell* c, bool is_read) {
    emu_report(is_read ? "read of shared memory that a cp_async_16 is still copying to"
                       : "write to shared memory that a cp_async_16 is still copying to",
               "byte %td of shared memory; %s issued it and has not waited", (c - emu_cells) * 2,
               emu_party(c->writer).s);
}
EMU_REPORTS void emu_report_unwritten(emu_cell* c) {
    emu_report("read of shared memory that was never written",
               "byte %td of shared memory; nobody writes it, or a barrier is missing that waits for its writer",
               (c - emu_cells) * 2);
}

// The current thread reads, or writes, the bytes [at, at + bytes).
EMU_UNCHECKED static inline void emu_note_read(int64_t at, int bytes) {
    int q = emu.current, warp = EMU_WARP_OF_READERS + q / 32;
    uint32_t block = emu.block_time, ordered = emu.barrier_time - block;
    for (emu_cell *c = emu_cells + at / 2, *end = c + bytes / 2; c < end; c++) {
        // most often: written in this block, before its last barrier; and this read is among those that are known
        bool known = c->read == emu.time && (c->reader == EMU_MANY_READERS || c->reader == warp || c->reader == q);
        if (known && c->written - block < ordered) continue;
        if (c->written < block) emu_report_unwritten(c);
        if (c->written == EMU_PENDING) emu_report_pending(c, true);
        if (!emu_before(c->writer, c->written)) emu_report_race(c, c->writer, "wrote", "reads");
        if (emu_before(c->reader, c->read)) {
            c->reader = (uint16_t)q;
        } else if (c->reader != warp) {
            bool one_warp = c->reader < EMU_MOST_THREADS && c->reader / 32 == q / 32;
            c->reader = (uint16_t)(one_warp ? warp : EMU_MANY_READERS);
        }
        c->read = emu.time;
    }
}
EMU_UNCHECKED static inline void emu_note_write(int64_t at, int bytes, int writer) {
    for (emu_cell *c = emu_cells + at / 2, *end = c + bytes / 2; c < end; c++) {
        if (c->written == EMU_PENDING) emu_report_pending(c, false);
        bool both_atomic = writer == EMU_ATOMIC_WRITER && c->writer == EMU_ATOMIC_WRITER;
        if (!both_atomic && !emu_before(c->writer, c->written)) emu_report_race(c, c->writer, "wrote", "writes");
        if (!emu_before(c->reader, c->read)) emu_report_race(c, c->reader, "read", "writes");
        c->written = emu.time;
        c->writer = (uint16_t)writer;
    }
}

// One element, or the 16 bytes that begin with it.
__attribute__((noinline)) static void emu_check_place(int64_t at, int64_t begin, int64_t end, int bytes,
                                                      int alignment) {
    if (at < begin || at + bytes > end) {
        emu_report("shared memory out of bounds", "bytes %lld to %lld of an array of %lld", (long long)(at - begin),
                   (long long)(at - begin + bytes - 1), (long long)(end - begin));
    }
    if (at % alignment) {
        emu_report("misaligned access", "byte %lld of shared memory is no multiple of %d", (long long)at, alignment);
    }
}

// a[i]: becomes a value where one is wanted.
template <typename T> struct emu_element {
    int64_t at, begin, end;
    typedef std::remove_const_t<T> V;

    V read() const {
        emu_check_place(at, begin, end, sizeof(V), alignof(V));
        emu_note_read(at, sizeof(V));
        V value;
        memcpy((void*)&value, emu_shared + at, sizeof value);
        return value;
    }
    V write(V value) const {
        static_assert(!std::is_const_v<T>, "this shared memory is const");
        emu_check_place(at, begin, end, sizeof(V), alignof(V));
        emu_note_write(at, sizeof(V), emu.current);
        memcpy(emu_shared + at, (const void*)&value, sizeof value);
        return value;
    }
    operator V() const&& { return read(); }
    explicit operator float() const&& requires(std::is_same_v<V, __nv_bfloat16>) { return (float)read(); }
    V operator=(V value) const { return write(value); }
    V operator=(const emu_element& other) const { return write(other.read()); }
    template <typename U> V operator=(const emu_element<U>& other) const { return write((V)other.read()); }
    template <typename U> V operator+=(U x) const { return write((V)(read() + x)); }
    template <typename U> V operator-=(U x) const { return write((V)(read() - x)); }
    template <typename U> V operator*=(U x) const { return write((V)(read() * x)); }
    template <typename U> V operator/=(U x) const { return write((V)(read() / x)); }
    template <typename U> V operator|=(U x) const { return write((V)(read() | x)); }
    template <typename U> V operator&=(U x) const { return write((V)(read() & x)); }
    template <typename U> V operator^=(U x) const { return write((V)(read() ^ x)); }
    V operator++() const { return write((V)(read() + 1)); }
    V operator--() const { return write((V)(read() - 1)); }
    V operator++(int) const { V old = read(); write((V)(old + 1)); return old; }
    V operator--(int) const { V old = read(); write((V)(old - 1)); return old; }
};

template <typename T> struct shared {
    static_assert(sizeof(T) % 2 == 0, "the emulator follows shared memory in units of two bytes");
    int64_t at, begin, end; // bytes of shared memory: this element, and the array that it belongs to
    shared() = default;
    shared(decltype(nullptr)) : at(0), begin(0), end(0) {}
    shared(int64_t at, int64_t begin, int64_t end) : at(at), begin(begin), end(end) {}
    operator shared<const T>() const requires(!std::is_const_v<T>) { return {at, begin, end}; }
    explicit operator bool() const { return end > 0; }
    emu_element<T> operator[](int64_t i) const { return {at + i * (int64_t)sizeof(T), begin, end}; }
    emu_element<T> operator*() const { return {at, begin, end}; }
    shared operator+(int64_t i) const { return {at + i * (int64_t)sizeof(T), begin, end}; }
    shared operator-(int64_t i) const { return {at - i * (int64_t)sizeof(T), begin, end}; }
    shared& operator+=(int64_t i) { at += i * (int64_t)sizeof(T); return *this; }
    shared& operator-=(int64_t i) { at -= i * (int64_t)sizeof(T); return *this; }
    shared& operator++() { return *this += 1; }
    int64_t operator-(shared<const T> other) const { return (at - other.at) / (int64_t)sizeof(T); }
};

template <typename T> static inline shared<T> shared_array(size_t byte_offset, size_t count) {
    if (byte_offset % alignof(T)) {
        emu_report("misaligned array in shared memory", "byte %zu is no multiple of %zu", byte_offset, alignof(T));
    }
    if (byte_offset > emu.shared_bytes || count > (emu.shared_bytes - byte_offset) / sizeof(T)) {
        emu_report("array outside of shared memory",
                   "%zu elements of %zu bytes at byte %zu, of %zu bytes that the launch asked for", count, sizeof(T),
                   byte_offset, emu.shared_bytes);
    }
    return {(int64_t)byte_offset, (int64_t)byte_offset, (int64_t)(byte_offset + count * sizeof(T))};
}

// ---- sixteen bytes --------------------------------------------------------------------------------------------------

static inline void emu_check_device_16(const void* p) {
    if ((uintptr_t)p % 16) emu_report("misaligned 16-byte access", "address %p in device memory", p);
}
template <typename T> static inline pack<T> load16(const T* p) {
    emu_check_device_16(p);
    pack<T> out;
    memcpy((void*)&out, (const void*)p, 16);
    return out;
}
template <typename T> static inline void store16(T* p, pack<T> value) {
    emu_check_device_16(p);
    memcpy((void*)p, (const void*)&value, 16);
}
template <typename T> static inline pack<std::remove_const_t<T>> load16(shared<T> p) {
    emu_check_place(p.at, p.begin, p.end, 16, 16);
    emu_note_read(p.at, 16);
    pack<std::remove_const_t<T>> out;
    memcpy((void*)&out, emu_shared + p.at, 16);
    return out;
}
template <typename T> static inline void store16(shared<T> p, pack<T> value) {
    emu_check_place(p.at, p.begin, p.end, 16, 16);
    emu_note_write(p.at, 16, emu.current);
    memcpy(emu_shared + p.at, (const void*)&value, 16);
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

static inline void emu_set_written(int64_t at, uint32_t time) {
    for (int i = 0; i < 8; i++) emu_cells[at / 2 + i].written = time;
}

template <typename T> static inline void cp_async_16(shared<T> to, const T* from, bool valid) {
    emu_check_place(to.at, to.begin, to.end, 16, 16);
    if (valid) emu_check_device_16(from);
    emu_thread* thread = &emu.thread[emu.current];
    if (thread->copy_count == thread->copy_room) {
        thread->copy_room = thread->copy_room ? thread->copy_room * 2 : 16;
        thread->copies = (emu_copy*)realloc(thread->copies, thread->copy_room * sizeof *thread->copies);
    }
    emu_note_write(to.at, 16, emu.current);
    emu_set_written(to.at, EMU_PENDING);
    memset(emu_shared + to.at, 0xff, 16);
    thread->copies[thread->copy_count++] = {to.at, from, valid, thread->group};
}
static inline void cp_async_commit(void) { emu.thread[emu.current].group++; }

template <int N> static inline void cp_async_wait(void) {
    emu_thread* thread = &emu.thread[emu.current];
    unsigned kept = 0;
    for (unsigned i = 0; i < thread->copy_count; i++) {
        emu_copy c = thread->copies[i];
        if (thread->group - c.group <= (unsigned)N) { // of the N newest groups, or of none yet
            thread->copies[kept++] = c;
            continue;
        }
        if (c.valid) memcpy(emu_shared + c.to, c.from, 16);
        else memset(emu_shared + c.to, 0, 16);
        emu_set_written(c.to, emu.time);
    }
    thread->copy_count = kept;
}

// A thread ended before its copies arrived: their places count as never written.
static inline void emu_drop_copies(emu_thread* thread) {
    for (unsigned i = 0; i < thread->copy_count; i++) emu_set_written(thread->copies[i].to, 0);
    thread->copy_count = 0;
}

// ---- atomics --------------------------------------------------------------------------------------------------------

template <typename T> static inline void emu_count_atomic(void) { emu.float_atomics += std::is_floating_point_v<T>; }
// How often kernels added floats atomically. The order of such sums is not fixed: tests may refuse them.
static inline size_t emu_float_atomics(void) { return emu.float_atomics; }

template <typename T> static inline T atomicAdd(T* p, std::type_identity_t<T> x) {
    emu_count_atomic<T>();
    T old = *p;
    *p = old + x;
    return old;
}
template <typename T> static inline T atomicAdd(shared<T> p, std::type_identity_t<T> x) {
    emu_count_atomic<T>();
    emu_check_place(p.at, p.begin, p.end, sizeof(T), alignof(T));
    if (emu_cells[p.at / 2].written < emu.block_time) emu_report_unwritten(&emu_cells[p.at / 2]);
    emu_note_write(p.at, sizeof(T), EMU_ATOMIC_WRITER);
    T old, sum;
    memcpy(&old, emu_shared + p.at, sizeof old);
    sum = old + x;
    memcpy(emu_shared + p.at, &sum, sizeof sum);
    return old;
}
