// warp.h: what the 32 lanes of a warp do together: shuffles, votes, __syncwarp, ldmatrix, mma.
//
// A lane leaves what it brings in a record on its stack and waits. The last lane of the mask to arrive does the work
// for all of them, after which all can run. Lanes must agree on the collective and on the mask, and each must be in its
// own mask. The layouts of ldmatrix and mma are told in common/cuda/launch.cuh.
// Look next at dev/emu/cublaslt.h.
#pragma once
// defines: emu, emu_report, emu_yield, EMU_HERE
#include "dev/emu/block.h"
// defines: shared, emu_shared, emu_note_read, emu_check_place
#include "dev/emu/shared.h"

// The records of the lanes of one collective, by lane; NULL outside of the mask.
template <typename R> struct emu_lanes {
    R* lane[32];
};

template <typename R, typename F>
static inline void emu_collective(const char* name, uint32_t mask, R* record, F work, const char* file, int line) {
    int t = emu.current, w = t / 32;
    emu_thread *self = &emu.thread[t], *lanes = &emu.thread[w * 32];
    emu_warp* warp = &emu.warp[w];
    int exist = emu.threads - w * 32;
    if (!(mask >> (t % 32) & 1)) {
        emu_report("wrong mask", "%s, %s:%d, is called by lane %d with mask 0x%08x", name, file, line, t % 32, mask);
    }
    if (exist < 32 && mask >> exist) {
        emu_report("wrong mask", "%s, %s:%d, has mask 0x%08x; this warp has %d lanes", name, file, line, mask, exist);
    }
    if (warp->alike) { // one stands for all of them
        emu_thread* first = &lanes[__builtin_ctz(warp->alike)];
        if (first->mask != mask || first->collective != name) warp->alike = 0;
    }
    for (uint32_t others = warp->waiting & mask & ~warp->alike; others; others &= others - 1) {
        int o = w * 32 + __builtin_ctz(others);
        emu_thread* other = &emu.thread[o];
        if (!(other->mask >> (t % 32) & 1)) continue; // in a collective of fewer lanes, and may still come here
        if (other->mask == mask && (other->collective == name || !strcmp(other->collective, name))) continue;
        emu_report("lanes of a warp in different collectives", "%s, %s:%d, mask 0x%08x; %s %s, mask 0x%08x", name, file,
                   line, mask, emu_thread_name(o).s, emu_whereabouts(o).s, other->mask);
    }
    self->collective = name;
    self->mask = mask;
    self->record = record;
    self->file = file;
    self->line = line;
    emu.state[t] = EMU_IN_COLLECTIVE;
    warp->waiting |= 1u << (t % 32);
    warp->alike |= 1u << (t % 32);
    if (emu_missing_lanes(t) == 0) {
        emu_lanes<R> all;
        for (int i = 0; i < 32; i++) all.lane[i] = mask >> i & 1 ? (R*)lanes[i].record : NULL;
        work(all);
        warp->waiting &= ~mask;
        warp->alike &= warp->waiting;
        for (uint32_t rest = mask; rest; rest &= rest - 1) emu_make_ready(w * 32 + __builtin_ctz(rest));
    }
    emu_yield();
}

// ---- shuffles -------------------------------------------------------------------------------------------------------

template <typename T> struct emu_shuffled {
    T in, out;
    int source; // lane
};

template <typename T> static inline T emu_shuffle(const char* name, uint32_t mask, T value, int source,
                                                  const char* file, int line) {
    emu_shuffled<T> record = {value, value, source};
    emu_collective(name, mask, &record, [](emu_lanes<emu_shuffled<T>>& all) {
        for (int i = 0; i < 32; i++) {
            if (!all.lane[i]) continue;
            emu_shuffled<T>* from = all.lane[all.lane[i]->source];
            if (from) all.lane[i]->out = from->in;
            else memset((void*)&all.lane[i]->out, 0xff, sizeof(T)); // undefined: a lane outside of the mask
        }
    }, file, line);
    return record.out;
}

// `width` lanes (a power of two) form a group of their own. A source outside of the group leaves the value as it is.
template <typename T> static inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, EMU_HERE) {
    int lane = emu.current % 32;
    return emu_shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), file, line);
}
template <typename T> static inline T __shfl_xor_sync(uint32_t mask, T value, int x, int width = 32, EMU_HERE) {
    int lane = emu.current % 32, source = lane ^ x;
    if (source >= (lane & ~(width - 1)) + width) source = lane;
    return emu_shuffle("__shfl_xor_sync", mask, value, source, file, line);
}
template <typename T> static inline T __shfl_down_sync(uint32_t mask, T value, unsigned x, int width = 32, EMU_HERE) {
    int lane = emu.current % 32;
    int source = (unsigned)(lane & (width - 1)) + x < (unsigned)width ? lane + (int)x : lane;
    return emu_shuffle("__shfl_down_sync", mask, value, source, file, line);
}
template <typename T> static inline T __shfl_up_sync(uint32_t mask, T value, unsigned x, int width = 32, EMU_HERE) {
    int lane = emu.current % 32;
    int source = (unsigned)(lane & (width - 1)) >= x ? lane - (int)x : lane;
    return emu_shuffle("__shfl_up_sync", mask, value, source, file, line);
}

// ---- votes ----------------------------------------------------------------------------------------------------------

struct emu_vote {
    bool in;
    uint32_t out; // the lanes that said yes
};
static inline uint32_t emu_ballot(const char* name, uint32_t mask, bool yes, const char* file, int line) {
    emu_vote record = {yes, 0};
    emu_collective(name, mask, &record, [](emu_lanes<emu_vote>& all) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; i++) votes |= (uint32_t)(all.lane[i] && all.lane[i]->in) << i;
        for (int i = 0; i < 32; i++) if (all.lane[i]) all.lane[i]->out = votes;
    }, file, line);
    return record.out;
}
static inline uint32_t __ballot_sync(uint32_t mask, int yes, EMU_HERE) {
    return emu_ballot("__ballot_sync", mask, yes, file, line);
}
static inline int __any_sync(uint32_t mask, int yes, EMU_HERE) {
    return emu_ballot("__any_sync", mask, yes, file, line) != 0;
}
static inline int __all_sync(uint32_t mask, int yes, EMU_HERE) {
    return emu_ballot("__all_sync", mask, yes, file, line) == mask;
}

// The warp's barrier: what its lanes did to memory before is seen behind it.
static inline void __syncwarp(uint32_t mask = 0xffffffffu, EMU_HERE) {
    int w = emu.current / 32, exist = emu.threads - w * 32;
    uint32_t all_lanes = exist < 32 ? (1u << exist) - 1 : 0xffffffffu;
    if (mask == 0xffffffffu) mask = all_lanes;
    bool nothing;
    emu_collective("__syncwarp", mask, &nothing, [=](emu_lanes<bool>&) {
        emu_warp* warp = &emu.warp[w];
        emu.time++;
        if (mask == all_lanes) {
            warp->synchronised = emu.time;
        } else {
            for (int i = 0; i < 32; i++) {
                for (int j = 0; j < 32; j++) if (mask >> i & mask >> j & 1) warp->pair[i][j] = emu.time;
            }
        }
    }, file, line);
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------

struct emu_matrix_row {
    int64_t at; // this lane's row of eight bf16
    int64_t begin, end;
    uint32_t* out;
};

// Loads `count` matrices: register m of lane t holds two neighbours of matrix m.
EMU_UNCHECKED static inline void emu_load_matrices(emu_lanes<emu_matrix_row>& all, int count, bool transposed) {
    int self = emu.current;
    for (int m = 0; m < count; m++) {
        uint16_t rows[8][8];
        for (int r = 0; r < 8; r++) {
            emu_matrix_row* row = all.lane[8 * m + r];
            emu.current = self / 32 * 32 + 8 * m + r; // this lane reads, and is the one to name
            emu_check_place(row->at, row->begin, row->end, 16, 16);
            emu_note_read(row->at, 16);
            memcpy(rows[r], emu_shared + row->at, 16);
        }
        emu.current = self;
        for (int t = 0; t < 32; t++) {
            int i = t / 4, j = t % 4 * 2;
            uint32_t low = transposed ? rows[j][i] : rows[i][j], high = transposed ? rows[j + 1][i] : rows[i][j + 1];
            all.lane[t]->out[m] = low | high << 16;
        }
    }
}

static inline void emu_ldmatrix(const char* name, uint32_t* out, shared<const __nv_bfloat16> row, int count,
                                bool transposed, const char* file, int line) {
    emu_matrix_row record = {row.at, row.begin, row.end, out};
    emu_collective(name, 0xffffffffu, &record,
                   [=](emu_lanes<emu_matrix_row>& all) { emu_load_matrices(all, count, transposed); }, file, line);
}
static inline void ldmatrix_x4(uint32_t r[4], shared<const __nv_bfloat16> row, EMU_HERE) {
    emu_ldmatrix("ldmatrix_x4", r, row, 4, false, file, line);
}
static inline void ldmatrix_x4_transposed(uint32_t r[4], shared<const __nv_bfloat16> row, EMU_HERE) {
    emu_ldmatrix("ldmatrix_x4_transposed", r, row, 4, true, file, line);
}
static inline void ldmatrix_x2(uint32_t r[2], shared<const __nv_bfloat16> row, EMU_HERE) {
    emu_ldmatrix("ldmatrix_x2", r, row, 2, false, file, line);
}
static inline void ldmatrix_x2_transposed(uint32_t r[2], shared<const __nv_bfloat16> row, EMU_HERE) {
    emu_ldmatrix("ldmatrix_x2_transposed", r, row, 2, true, file, line);
}

struct emu_fragments {
    float* d;
    const uint32_t *a, *b;
};
typedef float emu_float4 __attribute__((vector_size(16)));

static inline float emu_low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
static inline float emu_high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

EMU_UNCHECKED static void emu_mma(emu_lanes<emu_fragments>& all) {
    float a[16][16];
    alignas(16) float b[16][8], d[16][8];
    for (int t = 0; t < 32; t++) { // from registers to matrices
        emu_fragments f = *all.lane[t];
        int g = t / 4, q = t % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[g + i % 2 * 8][q + i / 2 * 8] = emu_low(f.a[i]);
            a[g + i % 2 * 8][q + i / 2 * 8 + 1] = emu_high(f.a[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[q + i * 8][g] = emu_low(f.b[i]);
            b[q + i * 8 + 1][g] = emu_high(f.b[i]);
        }
        for (int i = 0; i < 4; i++) d[g + i / 2 * 8][q + i % 2] = f.d[i];
    }
    for (int row = 0; row < 16; row++) {
        emu_float4 *sum = (emu_float4*)d[row], low = sum[0], high = sum[1];
        for (int k = 0; k < 16; k++) {
            low += a[row][k] * ((emu_float4*)b[k])[0];
            high += a[row][k] * ((emu_float4*)b[k])[1];
        }
        sum[0] = low;
        sum[1] = high;
    }
    for (int t = 0; t < 32; t++) {
        for (int i = 0; i < 4; i++) all.lane[t]->d[i] = d[t / 4 + i / 2 * 8][t % 4 * 2 + i % 2];
    }
}

static inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_HERE) {
    emu_fragments record = {d, a, b};
    emu_collective("mma_m16n8k16", 0xffffffffu, &record, emu_mma, file, line);
}
