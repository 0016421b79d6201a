// emulator.cu: the emulator does what CUDA's documentation says, and finds the bugs it is there to find.
//
// First each primitive against plain loops. Then planted bugs: each is a small wrong kernel, run in a process of its
// own, whose report must say the right thing and name the kernel. Look next at dev/emu/emu.h.
#include <sys/wait.h>
#include <unistd.h>
#include "tests/test.h"
// defines: launch, shared, load16, ldmatrix_x4, mma_m16n8k16, cp_async_16, warp_sum, block_sum, ...
#include "common/cuda/launch.cuh"

static stream_t s;

template <typename T> static T* on_device(const T* host, size_t n) {
    T* p = (T*)device_malloc(n * sizeof(T), "a test's array");
    if (host) copy_to_device(p, host, n * sizeof(T), 0);
    return p;
}
// Copies to the host and frees.
template <typename T> static void take(T* host, T* device, size_t n) {
    copy_to_host(host, device, n * sizeof(T), 0);
    device_free(device);
}

// ---- primitives -----------------------------------------------------------------------------------------------------

static float float_of_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

static void test_bf16(void) {
    if (!test_case("bf16: every value comes back; to nearest, ties to even; NaN stays NaN")) return;
    int wrong = 0;
    for (uint32_t b = 0; b < 65536; b++) {
        bf16 x;
        x.bits = (uint16_t)b;
        bool nan = (b & 0x7fff) > 0x7f80, infinite = (b & 0x7fff) == 0x7f80;
        if (nan) {
            for (uint32_t low = 0; low < 65536; low += 257) wrong += !isnan((float)(bf16)float_of_bits(b << 16 | low));
            continue;
        }
        wrong += ((bf16)(float)x).bits != b;
        if (infinite) continue;
        uint32_t tie = b << 16 | 0x8000; // half way to the next value away from zero, or to infinity
        wrong += ((bf16)float_of_bits(tie - 1)).bits != b;
        wrong += ((bf16)float_of_bits(tie)).bits != b + (b & 1);
        wrong += ((bf16)float_of_bits(tie + 1)).bits != b + 1;
    }
    wrong += !isnan((float)(bf16)float_of_bits(0x7f800001)); // payload in the lower half alone
    check(wrong == 0, "65536 values and their ties");
    check((float)(bf16)3 == 3 && (float)(bf16)0.5 == 0.5f && (float)(bf16)7u == 7, "from int, double, unsigned");
    check(bf16x2(1, -2) == (0x3f80u | 0xc000u << 16), "bf16x2");
    test_end_case();
}

__global__ static void k_places(int* count, int* sum) {
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    count[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
    atomicAdd(sum, 1);
}

static void test_grid(void) {
    if (!test_case("each thread of each block runs once, in every order")) return;
    for (int order = 0; order < 3; order++) {
        emu_set_order(order);
        enum { N = 3 * 4 * 5 * 7 * 2 * 3 };
        int *count = on_device<int>(NULL, N), *sum = on_device<int>(NULL, 1), host[N], total;
        device_zero(count, N * sizeof(int), s);
        device_zero(sum, sizeof(int), s);
        launch<k_places>(dim3(3, 4, 5), dim3(7, 2, 3), 0, s, count, sum);
        take(host, count, N);
        take(&total, sum, 1);
        int wrong = 0;
        for (int i = 0; i < N; i++) wrong += host[i] != 1;
        check(wrong == 0 && total == N, "counts");
    }
    emu_set_order(0);
    test_end_case();
}

// Which thread came how many-th through each of two barriers.
__global__ static void k_order(int* turn, int* next) {
    for (int i = 0; i < 3; i++) {
        turn[i * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
        __syncthreads();
    }
}

static void run_order(int turn[3 * 96], uint64_t seed) {
    int *dturn = on_device<int>(NULL, 3 * 96), *dnext = on_device<int>(NULL, 1);
    device_zero(dnext, sizeof(int), s);
    emu_set_order(seed);
    launch<k_order>(1, 96, 0, s, dturn, dnext);
    emu_set_order(0);
    take(turn, dturn, 3 * 96);
    device_free(dnext);
}

static void test_order(void) {
    if (!test_case("order: 0 is in order; a seed repeats its order, another has another; phases differ")) return;
    int a[3 * 96], b[3 * 96];
    run_order(a, 0);
    int wrong = 0;
    for (int i = 0; i < 3 * 96; i++) wrong += a[i] != i;
    check(wrong == 0, "order 0");
    run_order(a, 5);
    run_order(b, 5);
    check(!memcmp(a, b, sizeof a), "order 5 twice");
    int same = 0;
    for (int i = 0; i < 96; i++) same += a[i] + 96 == a[i + 96];
    check(same < 20, "another order behind the barrier");
    run_order(b, 6);
    check(memcmp(a, b, sizeof a) != 0, "orders 5 and 6");
    test_end_case();
}

enum { SHUFFLES = 12 };
__global__ static void k_shuffle(int* out, const int* in) {
    int lane = threadIdx.x % WARP, x = in[threadIdx.x], i = 0;
    uint32_t all = 0xffffffffu;
    int* o = out + threadIdx.x * SHUFFLES;
    o[i++] = __shfl_sync(all, x, 5);
    o[i++] = __shfl_sync(all, x, lane * 7, 8);       // taken modulo the width
    o[i++] = __shfl_xor_sync(all, x, 9);
    o[i++] = __shfl_xor_sync(all, x, 9, 8);          // a later group is out of reach
    o[i++] = __shfl_down_sync(all, x, 3);
    o[i++] = __shfl_down_sync(all, x, 3, 16);
    o[i++] = __shfl_up_sync(all, x, 2);
    o[i++] = __shfl_up_sync(all, x, 2, 4);
    o[i++] = (int)__ballot_sync(all, x & 1);
    uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u; // two collectives at once, in the halves
    o[i++] = __shfl_xor_sync(half, x, 1);
    o[i++] = (int)__ballot_sync(half, x & 2);
    o[i++] = __any_sync(half, x == 77) + 2 * __all_sync(half, x >= 0);
}

static void test_shuffles(void) {
    if (!test_case("shuffles and votes, whole warps, widths, halves")) return;
    int in[64], out[64 * SHUFFLES], wrong = 0;
    for (int i = 0; i < 64; i++) in[i] = (int)(500 * (test_uniform() + 1));
    in[3] = 77;
    for (uint64_t seed = 0; seed < 3; seed++) {
        emu_set_order(seed);
        int *din = on_device(in, 64), *dout = on_device<int>(NULL, 64 * SHUFFLES);
        launch<k_shuffle>(1, 64, 0, s, dout, din);
        take(out, dout, 64 * SHUFFLES);
        device_free(din);
        for (int t = 0; t < 64; t++) {
            const int* x = in + t / 32 * 32;
            int l = t % 32, half = l / 16 * 16, votes = 0, half_votes = 0, any = 0, every = 1;
            for (int i = 0; i < 32; i++) votes |= (x[i] & 1) << i;
            for (int i = half; i < half + 16; i++) {
                half_votes |= (x[i] >> 1 & 1) << i;
                any |= x[i] == 77;
                every &= x[i] >= 0;
            }
            int want[SHUFFLES] = {
                x[5], x[l / 8 * 8 + l * 7 % 8], x[l ^ 9], (l ^ 9) / 8 > l / 8 ? x[l] : x[l ^ 9],
                l < 29 ? x[l + 3] : x[l], l % 16 < 13 ? x[l + 3] : x[l], l >= 2 ? x[l - 2] : x[l],
                l % 4 >= 2 ? x[l - 2] : x[l], votes, x[l ^ 1], half_votes, any + 2 * every,
            };
            for (int i = 0; i < SHUFFLES; i++) wrong += out[t * SHUFFLES + i] != want[i];
        }
    }
    emu_set_order(0);
    check(wrong == 0, "64 threads, 12 results, 3 orders");
    test_end_case();
}

__global__ static void k_sums(float* out, const float* in) {
    shared<float> work = shared_array<float>(64, 32);
    float x = in[threadIdx.x];
    float* o = out + threadIdx.x * 3;
    o[0] = warp_sum(x);
    o[1] = block_sum(x, work);
    o[2] = block_max(x, work);
}

static void test_sums(void) {
    if (!test_case("warp_sum, block_sum, block_max: every thread has the result")) return;
    enum { N = 160 };
    float in[N], out[N * 3];
    for (int i = 0; i < N; i++) in[i] = (float)test_normal();
    float *din = on_device(in, N), *dout = on_device<float>(NULL, N * 3);
    emu_set_order(3);
    launch<k_sums>(1, N, 64 + 128, s, dout, din);
    emu_set_order(0);
    take(out, dout, N * 3);
    device_free(din);
    double sum = 0, most = in[0], error = 0;
    for (int i = 0; i < N; i++) {
        sum += in[i];
        most = fmax(most, in[i]);
    }
    for (int i = 0; i < N; i++) {
        double warp = 0;
        for (int j = 0; j < 32; j++) warp += in[i / 32 * 32 + j];
        error = fmax(error, fabs(out[i * 3] - warp));
        error = fmax(error, fabs(out[i * 3 + 1] - sum));
        error = fmax(error, fabs(out[i * 3 + 2] - most));
    }
    check_error("sums", error, 1e-5);
    test_end_case();
}

// Each thread loads its register of 4 matrices (and of 2), straight and transposed, from rows of 8 that lie 24 apart.
__global__ static void k_ldmatrix(uint32_t* out, const bf16* in) {
    shared<bf16> a = shared_array<bf16>(32, 32 * 24);
    int t = threadIdx.x;
    store16(a + t * 24, load16(in + t * 8));
    __syncwarp();
    ldmatrix_x4(out + t * 12, a + t * 24);
    ldmatrix_x4_transposed(out + t * 12 + 4, a + t * 24);
    ldmatrix_x2(out + t * 12 + 8, a + t % 16 * 24);
    ldmatrix_x2_transposed(out + t * 12 + 10, a + t % 16 * 24);
}

static void test_ldmatrix(void) {
    if (!test_case("ldmatrix: the documented register of every thread, straight and transposed")) return;
    bf16 in[4][8][8]; // matrix, row, column
    uint32_t out[32][12];
    for (int i = 0; i < 256; i++) (&in[0][0][0])[i] = (bf16)test_normal();
    bf16* din = on_device(&in[0][0][0], 256);
    uint32_t* dout = on_device<uint32_t>(NULL, 32 * 12);
    launch<k_ldmatrix>(1, 32, 32 + 32 * 48, s, dout, din);
    take(&out[0][0], dout, 32 * 12);
    device_free(din);
    int wrong = 0;
    for (int t = 0; t < 32; t++) {
        for (int m = 0; m < 4; m++) {
            int row = t / 4, column = 2 * (t % 4);
            uint32_t straight = in[m][row][column].bits | (uint32_t)in[m][row][column + 1].bits << 16;
            uint32_t transposed = in[m][column][row].bits | (uint32_t)in[m][column + 1][row].bits << 16;
            wrong += out[t][m] != straight || out[t][4 + m] != transposed;
            if (m < 2) wrong += out[t][8 + m] != straight || out[t][10 + m] != transposed;
        }
    }
    check(wrong == 0, "32 threads, 12 registers");
    test_end_case();
}

// d (16, 8) += a (16, 16) b (16, 8): registers filled by the documented layout, and a second time by ldmatrix.
__global__ static void k_mma(float* d, const bf16* a, const bf16* b, bool by_ldmatrix) {
    int t = threadIdx.x, g = t / 4, q = t % 4;
    uint32_t ra[4], rb[2];
    float rd[4];
    if (by_ldmatrix) {
        shared<bf16> sa = shared_array<bf16>(0, 16 * 16), sb = shared_array<bf16>(512, 16 * 8);
        for (int i = t; i < 16 * 16; i += 32) sa[i] = a[i];
        for (int i = t; i < 16 * 8; i += 32) sb[i] = b[i];
        __syncwarp();
        ldmatrix_x4(ra, sa + t % 16 * 16 + t / 16 * 8); // matrices: upper left, lower left, upper right, lower right
        ldmatrix_x2_transposed(rb, sb + t % 16 * 8);
    } else {
        auto pair = [](bf16 low, bf16 high) { return low.bits | (uint32_t)high.bits << 16; };
        for (int i = 0; i < 4; i++) {
            int row = g + i % 2 * 8, column = 2 * q + i / 2 * 8;
            ra[i] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
        }
        for (int i = 0; i < 2; i++) rb[i] = pair(b[(2 * q + 8 * i) * 8 + g], b[(2 * q + 8 * i + 1) * 8 + g]);
    }
    for (int i = 0; i < 4; i++) rd[i] = d[(g + i / 2 * 8) * 8 + 2 * q + i % 2];
    mma_m16n8k16(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = rd[i];
}

static void test_mma(void) {
    if (!test_case("mma_m16n8k16 against plain loops, by the documented layout and by ldmatrix")) return;
    bf16 a[16 * 16], b[16 * 8];
    float d[16 * 8], got[16 * 8];
    double want[16 * 8], wide[16 * 8];
    for (int i = 0; i < 16 * 16; i++) a[i] = (bf16)test_normal();
    for (int i = 0; i < 16 * 8; i++) b[i] = (bf16)test_normal();
    for (int i = 0; i < 16 * 8; i++) want[i] = d[i] = (float)test_normal();
    for (int i = 0; i < 16; i++) for (int j = 0; j < 8; j++) {
        for (int k = 0; k < 16; k++) want[i * 8 + j] += (double)(float)a[i * 16 + k] * (float)b[k * 8 + j];
    }
    for (int by_ldmatrix = 0; by_ldmatrix < 2; by_ldmatrix++) {
        bf16 *da = on_device(a, 16 * 16), *db = on_device(b, 16 * 8);
        float* dd = on_device(d, 16 * 8);
        emu_set_order(by_ldmatrix);
        launch<k_mma>(1, 32, 1024, s, dd, da, db, (bool)by_ldmatrix);
        take(got, dd, 16 * 8);
        device_free(da);
        device_free(db);
        for (int i = 0; i < 16 * 8; i++) wide[i] = got[i];
        check_error("d", relative_error_double(wide, want, 16 * 8), 1e-6);
    }
    emu_set_order(0);
    test_end_case();
}

// Three groups: {0, 16}, {32}, {48: zeros}. After wait<1> the first two are there, after wait<0> all.
__global__ static void k_copy(float* out, const float* in) {
    shared<float> a = shared_array<float>(0, 16);
    cp_async_16(a, in, true);
    cp_async_16(a + 4, in + 4, true);
    cp_async_commit();
    cp_async_16(a + 8, in + 8, true);
    cp_async_commit();
    cp_async_16(a + 12, (const float*)nullptr, false);
    cp_async_commit();
    cp_async_wait<1>();
    for (int i = 0; i < 12; i++) out[i] = a[i];
    cp_async_wait<0>();
    for (int i = 12; i < 16; i++) out[i] = a[i];
}

static void test_copies(void) {
    if (!test_case("cp_async: groups arrive in their order; zeros where not valid")) return;
    float in[12], out[16];
    for (int i = 0; i < 12; i++) in[i] = (float)test_normal();
    float *din = on_device(in, 12), *dout = on_device<float>(NULL, 16);
    launch<k_copy>(1, 1, 64, s, dout, din);
    take(out, dout, 16);
    device_free(din);
    check(!memcmp(in, out, sizeof in), "the copied");
    check(out[12] == 0 && out[15] == 0, "the zeros");
    test_end_case();
}

// What elements of shared memory can be told; neighbouring bf16 belong to different threads; packs; atomics.
__global__ static void k_elements(float* out) {
    int t = threadIdx.x;
    shared<float> f = shared_array<float>(0, 4);
    shared<bf16> h = shared_array<bf16>(16, 64);
    shared<pack<float>> p = shared_array<pack<float>>(16 + 128, 1);
    shared<int> n = shared_array<int>(16 + 128 + 16, 1);
    h[t] = (bf16)(float)t;
    if (t == 0) {
        f[0] = 3.f;
        f[0] += 2;
        f[0] *= 4;
        f[1] = f[0];
        f[1] -= 1;
        f[2] = f[3] = 7.f;
        p[0] = load16(f);
        n[0] = 0;
    }
    __syncthreads();
    atomicAdd(n, t);
    shared<const bf16> reader = h;
    out[t] = (float)reader[63 - t] + (float)*(h + t);
    __syncthreads();
    if (t > 0) return;
    pack<float> v = p[0];
    pack<bf16> w = load16(h + 8);
    out[64] = v[0];
    out[65] = v[1];
    out[66] = v[2];
    out[67] = (float)w[3];
    out[68] = n[0];
}

// What is no race: each step is ordered by the least barrier that suffices.
__global__ static void k_no_race(float* out) {
    int t = threadIdx.x, w = t / 32 * 32;
    shared<float> a = shared_array<float>(0, 64);
    a[t] = 1.f;
    __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);
    float x = a[t ^ 1] + a[t ^ 9];    // of this half
    __syncwarp();
    x += a[t ^ 16] + a[w];            // of this warp; all lanes read the first
    __syncwarp();
    if (t == w + 5) a[w] = 2.f;       // behind the reads of all lanes
    __syncthreads();
    x += a[t ^ 32] + a[0];            // of the block; all warps read the first
    __syncthreads();
    a[t] = x;
    if (t == 7) a[7] += 1.f;          // one's own, at any time
    out[t] = a[t];
}

static void test_no_race(void) {
    if (!test_case("ordered accesses to shared memory are no race, in any order of the threads")) return;
    for (uint64_t seed = 0; seed < 6; seed++) {
        float out[64], *dout = on_device<float>(NULL, 64);
        emu_set_order(seed);
        launch<k_no_race>(3, 64, 256, s, dout);
        take(out, dout, 64);
        int wrong = 0;
        for (int t = 0; t < 64; t++) wrong += out[t] != 4 + (t % 32 == 0 ? 2 : 1) + 2 + (t == 7);
        check(wrong == 0, "values");
    }
    emu_set_order(0);
    test_end_case();
}

static void test_elements(void) {
    if (!test_case("shared memory: elements, constants, packs, atomics")) return;
    float out[69];
    size_t before = emu_float_atomics();
    float* dout = on_device<float>(NULL, 69);
    emu_set_order(9);
    launch<k_elements>(1, 64, 16 + 128 + 16 + 4, s, dout);
    emu_set_order(0);
    take(out, dout, 69);
    int wrong = 0;
    for (int i = 0; i < 64; i++) wrong += out[i] != 63;
    check(wrong == 0, "bf16 by neighbours");
    check(out[64] == 20 && out[65] == 19 && out[66] == 7 && out[67] == 11, "elements");
    check(out[68] == 63 * 32, "atomicAdd");
    check(emu_float_atomics() == before, "no float atomics");
    test_end_case();
}

__global__ static void k_float_atomic(float* x) { atomicAdd(x, 1.f); }

static void test_runtime(void) {
    if (!test_case("runtime: counters, arrival behind the wait, fresh memory, min and max")) return;
    float three = 3, got = 0;
    float* x = on_device(&three, 1);
    size_t allocations = emu_allocations(), waits = emu_synchronisations(), atomics = emu_float_atomics();
    launch<k_float_atomic>(2, 8, 0, s, x);
    copy_to_host(&got, x, sizeof got, s);
    check(isnan(got), "a copy that was not waited for has not arrived");
    check(emu_allocations() == allocations && emu_synchronisations() == waits, "work that the host does not wait for");
    stream_wait(s);
    check(got == 19, "16 atomic additions");
    check(emu_float_atomics() == atomics + 16, "float atomics are counted");
    check(emu_synchronisations() == waits + 1, "stream_wait is counted");
    device_free(x);
    check(emu_allocations() == allocations + 1, "cudaFree is counted");

    float* scratch = (float*)device_scratch(s, 256);
    device_zero(scratch, 256, s);
    scratch = (float*)device_scratch(s, 128);
    copy_to_host(&got, scratch, sizeof got, 0);
    check(isnan(got), "scratch memory forgets");
    check(min(3, 5) == 3 && max(3u, 5u) == 5 && max(-1.f, 2.f) == 2 && rsqrtf(4.f) == 0.5f, "min, max, rsqrtf");
    device_zero(NULL, 0, s);
    copy_to_device(NULL, &three, 0, s);
    copy_to_host(&three, NULL, 0, 0);
    check(three == 3, "nothing is set and copied");
    test_end_case();
}

// What a block may have of shared memory, by capability.
static void test_capabilities(void) {
    if (!test_case("EMU_CAPABILITY: the shared memory of other GPUs")) return;
    static const struct { const char* capability; int shared_bytes; } gpus[] = {
        {"8.0", 166912}, {"8.6", 101376}, {"8.9", 101376}, {"9.0", 232448},
        {"10.0", 232448}, {"12.0", 101376}, {NULL, 232448}}; // without it, an H100's
    const char* before = getenv("EMU_CAPABILITY");
    for (int i = 0; i < 7; i++) {
        if (gpus[i].capability) setenv("EMU_CAPABILITY", gpus[i].capability, 1);
        else unsetenv("EMU_CAPABILITY");
        stream_t other = device_open(0);
        check(other->shared_bytes == gpus[i].shared_bytes, gpus[i].capability ? gpus[i].capability : "none");
        device_close(other);
    }
    if (before) setenv("EMU_CAPABILITY", before, 1);
    test_end_case();
}

// ---- planted bugs ---------------------------------------------------------------------------------------------------

__global__ static void bug_barrier(void) {
    if (threadIdx.x < 40) __syncthreads();
}
__global__ static void bug_two_barriers(void) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
__global__ static void bug_collective(float* x) {
    if (threadIdx.x != 7) x[threadIdx.x] = warp_sum(1);
}
__global__ static void bug_collective_at_barrier(float* x) {
    if (threadIdx.x != 7) x[threadIdx.x] = warp_sum(1);
    __syncthreads();
}
__global__ static void bug_mask(float* x) { x[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.f, 1); }
__global__ static void bug_mixed_collectives(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffffffu, 1.f, 0);
    else __syncwarp();
}
__global__ static void bug_misaligned(float* x) { store16(x + threadIdx.x, pack<float>{}); }
__global__ static void bug_shared_bounds(int n) {
    shared<float> a = shared_array<float>(0, 32), b = shared_array<float>(128, 32);
    a[threadIdx.x] = 1.f;
    b[threadIdx.x] = 1.f;
    if (threadIdx.x == 9) a[n] = 2.f; // inside of shared memory, in the neighbour
}
__global__ static void bug_shared_array(void) { shared_array<float>(64, 17); }
__global__ static void bug_shared_misaligned(void) { load16(shared_array<float>(0, 64) + 1); }
__global__ static void bug_unwritten(float* x) {
    shared<float> a = shared_array<float>(0, 32);
    if (threadIdx.x < 31 || blockIdx.x == 0) a[threadIdx.x] = 1.f; // the next block does not inherit it
    __syncthreads();
    x[threadIdx.x] = a[threadIdx.x];
}
__global__ static void bug_no_barrier(float* x) {
    shared<float> a = shared_array<float>(0, 64);
    a[threadIdx.x] = 1.f;
    if (blockIdx.x == 0) __syncthreads();
    x[threadIdx.x] = a[threadIdx.x / 2];
}
__global__ static void bug_no_barrier_behind(float* x) { // the next round overwrites what others may not have read
    shared<float> a = shared_array<float>(0, 64);
    for (int i = 0; i < 2; i++) {
        a[threadIdx.x] = 1.f;
        __syncthreads();
        x[threadIdx.x] = a[63 - threadIdx.x];
    }
}
__global__ static void bug_no_syncwarp(float* x) {
    shared<float> a = shared_array<float>(0, 32);
    a[threadIdx.x] = 1.f;
    float sum = warp_sum(1); // all lanes meet here, but a shuffle does not order memory
    x[threadIdx.x] = a[threadIdx.x ^ 1] + sum;
}
__global__ static void bug_syncwarp_of_another_warp(float* x) {
    shared<float> a = shared_array<float>(0, 64);
    a[threadIdx.x] = 0.f;
    __syncthreads();
    a[threadIdx.x] = 1.f;
    __syncwarp();
    if (threadIdx.x >= 32) x[threadIdx.x] = a[threadIdx.x - 32];
}
__global__ static void bug_syncwarp_of_a_half(float* x) {
    shared<float> a = shared_array<float>(0, 32);
    a[threadIdx.x] = 0.f;
    __syncthreads();
    a[threadIdx.x] = 1.f;
    __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
    x[threadIdx.x] = a[threadIdx.x ^ 16];
}
__global__ static void bug_write_behind_reads(float* x) { // the last thread writes what all of them read
    shared<float> a = shared_array<float>(0, 1);
    if (threadIdx.x == 0) a[0] = 1.f;
    __syncthreads();
    x[threadIdx.x] = a[0];
    if (threadIdx.x == blockDim.x - 1) a[0] = 2.f;
}
__global__ static void bug_write_of_another_warp(float* x) { // which only its own barrier stands before
    shared<float> a = shared_array<float>(0, 1);
    if (threadIdx.x == 0) a[0] = 1.f;
    __syncthreads();
    if (threadIdx.x < 32) x[threadIdx.x] = a[0];
    else __syncwarp();
    if (threadIdx.x == 63) a[0] = 2.f;
}
__global__ static void bug_same_element(void) { shared_array<float>(0, 1)[0] = 1.f; }
__global__ static void bug_no_wait(float* x) {
    shared<float> a = shared_array<float>(0, 32 * 4);
    cp_async_16(a + threadIdx.x * 4, (const float*)x, true);
    cp_async_commit();
    __syncthreads();
    x[threadIdx.x] = a[threadIdx.x];
}
__global__ static void bug_wait_for_the_first(float* x) { // of two groups, and reads the second
    shared<float> a = shared_array<float>(0, 8);
    for (int i = 0; i < 2; i++) {
        cp_async_16(a + 4 * i, (const float*)x + 4 * i, true);
        cp_async_commit();
    }
    cp_async_wait<1>();
    x[8] = a[3];
    x[9] = a[4];
}
__global__ static void bug_wait_without_barrier(float* x) {
    shared<float> a = shared_array<float>(0, 32 * 4);
    cp_async_16(a + threadIdx.x * 4, (const float*)x, true);
    cp_async_commit();
    cp_async_wait<0>();
    if (threadIdx.x % 2) x[threadIdx.x] = a[(threadIdx.x - 1) * 4];
}
__global__ static void bug_ldmatrix_race(uint32_t* x) {
    shared<bf16> a = shared_array<bf16>(0, 32 * 8);
    store16(a + threadIdx.x * 8, pack<bf16>{});
    ldmatrix_x4(x + threadIdx.x * 4, a + (threadIdx.x ^ 1) * 8);
}
__global__ static void nothing(void) {}
__global__ static void takes_pointer(const float*) {}

static float* x; // 64 floats of device memory
static void run_two_barriers(void) { launch<bug_two_barriers>(1, 64, 0, s); }
static void run_barrier(void) { launch<bug_barrier>(dim3(1), dim3(64), 0, s); }
static void run_collective(void) { launch<bug_collective>(1, 32, 0, s, x); }
static void run_collective_at_barrier(void) { launch<bug_collective_at_barrier>(1, 64, 0, s, x); }
static void run_mask(void) { launch<bug_mask>(1, 32, 0, s, x); }
static void run_mask_of_absent_lanes(void) { launch<bug_collective>(1, 24, 0, s, x); }
static void run_mixed_collectives(void) { launch<bug_mixed_collectives>(1, 32, 0, s, x); }
static void run_shared_bounds(void) { launch<bug_shared_bounds>(1, 32, 256, s, 33); }
static void run_shared_array(void) { launch<bug_shared_array>(1, 32, 128, s); }
static void run_shared_misaligned(void) { launch<bug_shared_misaligned>(1, 32, 256, s); }
static void run_unwritten(void) { launch<bug_unwritten>(2, 32, 128, s, x); }
static void run_no_barrier(void) { launch<bug_no_barrier>(2, 64, 256, s, x); }
static void run_no_barrier_behind(void) { launch<bug_no_barrier_behind>(1, 64, 256, s, x); }
static void run_no_syncwarp(void) { launch<bug_no_syncwarp>(1, 32, 128, s, x); }
static void run_syncwarp_of_another_warp(void) { launch<bug_syncwarp_of_another_warp>(1, 64, 256, s, x); }
static void run_syncwarp_of_a_half(void) { launch<bug_syncwarp_of_a_half>(1, 32, 128, s, x); }
static void run_write_behind_lanes(void) { launch<bug_write_behind_reads>(1, 32, 4, s, x); }
static void run_write_behind_warps(void) { launch<bug_write_behind_reads>(1, 64, 4, s, x); }
static void run_write_of_another_warp(void) { launch<bug_write_of_another_warp>(1, 64, 4, s, x); }
static void run_same_element(void) { launch<bug_same_element>(1, 33, 4, s); }
static void run_no_wait(void) { launch<bug_no_wait>(1, 32, 512, s, x); }
static void run_wait_for_the_first(void) { launch<bug_wait_for_the_first>(1, 1, 32, s, x); }
static void run_wait_without_barrier(void) { launch<bug_wait_without_barrier>(1, 32, 512, s, x); }
static void run_ldmatrix_race(void) { launch<bug_ldmatrix_race>(1, 32, 512, s, (uint32_t*)x); }
static void run_misaligned(void) { launch<bug_misaligned>(1, 32, 0, s, x); }
static void run_too_much_shared(void) { launch<nothing>(1, 32, 232448 + 4, s); }
static void run_too_much_for_a_small_gpu(void) {
    setenv("EMU_CAPABILITY", "8.6", 1);
    launch<nothing>(1, 32, 101376 + 4, device_open(0));
}
static void run_old_gpu(void) {
    setenv("EMU_CAPABILITY", "7.5", 1);
    device_open(0);
}
static void run_capability_misspelt(void) {
    setenv("EMU_CAPABILITY", "86", 1);
    device_open(0);
}
static void run_set_nothing(void) { CUDA_CHECK(cudaMemsetAsync(x, 0, 0)); }
static void run_copy_nothing(void) { CUDA_CHECK(cudaMemcpy(x, x + 1, 0, cudaMemcpyDeviceToDevice)); }
static void run_block_size(void) { launch<nothing>(1, 1025, 0, s); }
static void run_grid_size(void) { launch<nothing>(dim3(1, 65536), 32, 0, s); }
static void run_host_pointer(void) {
    float host = 0;
    launch<takes_pointer>(1, 1, 0, s, &host);
}
static void run_copy_direction(void) {
    float host[2] = {0, 0};
    copy_to_device(host, host + 1, sizeof(float), 0);
}

#if EMU_ASAN // device memory is watched by the sanitizers
__global__ static void bug_device_read(float* x, int n) { x[0] = x[n + (threadIdx.x == 3)]; }
template <int far> __global__ static void bug_device_write(float* x, int n) {
    if (blockIdx.x == 1 && threadIdx.x == 3) x[n + far] = 1;
}
__global__ static void bug_device_before(float* x) { x[-1] = 1; }
__global__ static void bug_freed(float** x) { (*x)[threadIdx.x] = 1; }
__global__ static void bug_misaligned_float(char* x) { *(float*)(x + 2) = 1; }
__global__ static void bug_copy_source(float* x, int n) {
    cp_async_16(shared_array<float>(0, 4), (const float*)x + n, true);
    cp_async_commit();
    cp_async_wait<0>();
}
__global__ static void bug_scratch(float* scratch, int n) { scratch[n] = 1; }
static void run_device_read(void) { launch<bug_device_read>(1, 32, 0, s, x, 63); }
static void run_device_write(void) { launch<bug_device_write<0>>(2, 32, 0, s, x, 64); }
static void run_device_far(void) { launch<bug_device_write<1000>>(2, 32, 0, s, x, 64); }
static void run_device_before(void) { launch<bug_device_before>(1, 1, 0, s, x); }
static void run_freed(void) {
    float** pointer = on_device(&x, 1);
    device_free(x);
    launch<bug_freed>(1, 32, 0, s, pointer);
}
static void run_copy_source(void) { launch<bug_copy_source>(1, 1, 16, s, x, 64); }
static void run_scratch(void) {
    device_scratch(s, 4096);
    float* scratch = (float*)device_scratch(s, 100);
    launch<bug_scratch>(1, 1, 0, s, scratch, 25);
}
static void run_host_touches(void) { *(volatile float*)x = 1; }
static void run_misaligned_float(void) { launch<bug_misaligned_float>(1, 1, 0, s, (char*)x); }
#endif

// Each bug, and what its report must say, in this order.
static const struct { void (*run)(void); const char* says[4]; } bugs[] = {
    {run_barrier, {"barrier not reached by all threads in kernel bug_barrier,", "thread (0,0,0)", "40 of 64",
                   "thread (40,0,0) has finished"}},
    {run_two_barriers, {"threads of one block wait at different barriers in kernel bug_two_barriers",
                        "thread (32,0,0)"}},
    {run_collective, {"warp collective not reached by all lanes of its mask in kernel bug_collective,",
                      "__shfl_xor_sync", "0x00000080", "thread (7,0,0) has finished"}},
    {run_collective_at_barrier, {"warp collective not reached by all", "bug_collective_at_barrier",
                                 "thread (7,0,0) waits at __syncthreads"}},
    {run_mask, {"wrong mask in kernel bug_mask", "thread (16,0,0)", "mask 0x0000ffff"}},
    {run_mask_of_absent_lanes, {"wrong mask in kernel bug_collective", "24 lanes"}},
    {run_mixed_collectives, {"different collectives in kernel bug_mixed_collectives", "thread (16,0,0)", "__syncwarp",
                             "thread (0,0,0) waits at __shfl_sync"}},
    {run_shared_bounds, {"shared memory out of bounds in kernel bug_shared_bounds", "thread (9,0,0)",
                         "132 to 135 of an array of 128"}},
    {run_shared_array, {"array outside of shared memory in kernel bug_shared_array",
                        "17 elements of 4 bytes at byte 64, of 128"}},
    {run_shared_misaligned, {"misaligned access in kernel bug_shared_misaligned", "thread (0,0,0)"}},
    {run_unwritten, {"read of shared memory that was never written in kernel bug_unwritten",
                     "block (1,0,0), thread (31,0,0)", "byte 124"}},
    {run_no_barrier, {"race in shared memory in kernel bug_no_barrier,", "block (1,0,0), thread (1,0,0)",
                      "reads here what thread (0,0,0) wrote"}},
    {run_no_barrier_behind, {"race in shared memory in kernel bug_no_barrier_behind", "thread (32,0,0)",
                             "reads here what thread (31,0,0) wrote"}},
    {run_no_syncwarp, {"race in shared memory in kernel bug_no_syncwarp", "thread (0,0,0)",
                       "what thread (1,0,0) wrote"}},
    {run_syncwarp_of_another_warp, {"race in shared memory in kernel bug_syncwarp_of_another_warp", "thread (32,0,0)",
                                    "reads here what thread (0,0,0) wrote"}},
    {run_syncwarp_of_a_half, {"race in shared memory in kernel bug_syncwarp_of_a_half", "thread (16,0,0)",
                              "writes here what thread (0,0,0) read"}},
    {run_write_behind_lanes, {"race in shared memory in kernel bug_write_behind_reads", "thread (31,0,0)",
                              "writes here what several lanes of warp 0 read"}},
    {run_write_behind_warps, {"race in shared memory in kernel bug_write_behind_reads", "thread (63,0,0)",
                              "writes here what several warps read"}},
    {run_write_of_another_warp, {"race in shared memory in kernel bug_write_of_another_warp", "thread (63,0,0)",
                                 "writes here what several lanes of warp 0 read"}},
    {run_same_element, {"race in shared memory in kernel bug_same_element", "thread (1,0,0)",
                        "writes here what thread (0,0,0) wrote"}},
    {run_no_wait, {"cp_async_16 is still copying to in kernel bug_no_wait", "thread (0,0,0)", "issued it"}},
    {run_wait_for_the_first, {"cp_async_16 is still copying to in kernel bug_wait_for_the_first", "byte 16 "}},
    {run_wait_without_barrier, {"race in shared memory in kernel bug_wait_without_barrier", "thread (1,0,0)",
                                "reads here what thread (0,0,0) wrote"}},
    {run_ldmatrix_race, {"race in shared memory in kernel bug_ldmatrix_race", "thread (0,0,0)",
                         "what thread (1,0,0) wrote"}},
    {run_misaligned, {"misaligned 16-byte access in kernel bug_misaligned", "thread (1,0,0)"}},
    {run_too_much_shared, {"too much shared memory in kernel nothing", "232452 bytes"}},
    {run_too_much_for_a_small_gpu, {"too much shared memory in kernel nothing", "101380 bytes asked for, of 101376"}},
    {run_old_gpu, {"GPU 0 (emulator) is of compute capability 7.5; the kernels need 8.0"}},
    {run_capability_misspelt, {"EMU_CAPABILITY is not understood"}},
    {run_set_nothing, {"cudaMemsetAsync(x, 0, 0) failed"}},
    {run_copy_nothing, {"cudaMemcpy(x, x + 1, 0, cudaMemcpyDeviceToDevice) failed"}},
    {run_block_size, {"bad block size in kernel nothing", "(1025,1,1)"}},
    {run_grid_size, {"bad grid size in kernel nothing", "(1,65536,1)"}},
    {run_host_pointer, {"not to device memory", "takes_pointer"}},
    {run_copy_direction, {"copy of the wrong kind"}},
#if EMU_ASAN
    {run_device_read, {"memory error in kernel bug_device_read", "thread (3,0,0)",
                       "0 bytes behind the end of a block of 256 bytes", "READ of size 4"}},
    {run_device_write, {"memory error in kernel bug_device_write<0>, block (1,0,0), thread (3,0,0)",
                        "0 bytes behind the end of a block of 256 bytes", "WRITE of size 4"}},
    {run_device_far, {"memory error in kernel bug_device_write<1000>, block (1,0,0), thread (3,0,0)",
                      "4000 bytes behind", "WRITE of size 4"}},
    {run_device_before, {"memory error in kernel bug_device_before", "4 bytes before a block of 256",
                         "WRITE of size 4"}},
    {run_freed, {"memory error in kernel bug_freed", "thread (0,0,0)", "heap-use-after-free", "WRITE of size 4"}},
    {run_copy_source, {"memory error in kernel bug_copy_source", "thread (0,0,0)", "0 bytes behind the end"}},
    {run_scratch, {"memory error in kernel bug_scratch", "scratch memory was asked for up to byte 100"}},
    {run_host_touches, {"memory error: address", "the host's code may not touch device memory"}},
    {run_misaligned_float, {"undefined behaviour in kernel bug_misaligned_float", "misaligned address"}},
#endif
};
enum { BUGS = sizeof bugs / sizeof *bugs };

static void test_bug(int i) {
    char name[128], text[8192];
    snprintf(name, sizeof name, "bug is found: %s", bugs[i].says[0]);
    if (!test_case(name)) return;
    int ends[2];
    if (pipe(ends)) fatal("no pipe");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        bugs[i].run();
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n < sizeof text - 1; n += got > 0 ? (size_t)got : 0) {
        got = read(ends[0], text + n, sizeof text - 1 - n);
    }
    text[n] = 0;
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    check(status != 0, "the program stops");
    const char* at = text;
    for (int j = 0; j < 4 && bugs[i].says[j] && at; j++) {
        const char* found = strstr(at, bugs[i].says[j]);
        check(found != NULL, bugs[i].says[j]);
        at = found;
    }
    if (!at) printf("%.800s\n", text);
    test_end_case();
}

// ---- bugs that show in the result -----------------------------------------------------------------------------------

// The bytes that `run` leaves in `result` are the same in every order of the threads.
static bool same_in_every_order(void (*run)(void* context), void* context, const void* result, size_t bytes) {
    char *first = (char*)malloc_check(bytes, "a result"), *other = (char*)malloc_check(bytes, "a result");
    bool same = true;
    for (uint64_t seed = 0; seed < 4; seed++) {
        emu_set_order(seed);
        run(context);
        copy_to_host(seed ? other : first, result, bytes, 0);
        if (seed) same = same && !memcmp(first, other, bytes);
    }
    emu_set_order(0);
    free(first);
    free(other);
    return same;
}

__global__ static void bug_depends_on_order(float* out) { // the last one wins
    out[0] = (float)threadIdx.x;
}
__global__ static void bug_neighbour_in_device_memory(float* out) { // a barrier is missing
    out[1 + threadIdx.x] = (float)threadIdx.x;
    if (threadIdx.x == 0) out[0] = out[1 + 32];
}
__global__ static void in_any_order(float* out) {
    shared<float> work = shared_array<float>(0, 32);
    float sum = block_sum(0.1f * (float)threadIdx.x, work);
    if (threadIdx.x == 0) out[0] = sum;
}
__global__ static void bug_uninitialised(float* out, const float* in) { out[threadIdx.x] = 2 * in[threadIdx.x]; }

static void test_results(void) {
    if (!test_case("a result that changes with the order of the threads is seen")) return;
    device_zero(x, 64 * sizeof(float), s);
    check(!same_in_every_order([](void*) { launch<bug_depends_on_order>(1, 32, 0, s, x); }, NULL, x, 4), "last write");
    device_zero(x, 64 * sizeof(float), s);
    check(!same_in_every_order([](void*) {
        device_zero(x, 64 * sizeof(float), s);
        launch<bug_neighbour_in_device_memory>(1, 33, 0, s, x);
    }, NULL, x, 4), "missing barrier, device memory");
    check(same_in_every_order([](void*) { launch<in_any_order>(1, 64, 128, s, x); }, NULL, x, 4), "a correct kernel");
    test_end_case();

    if (!test_case("memory that was never written shows as NaN in the result")) return;
    float *fresh = on_device<float>(NULL, 32), host[32];
    launch<bug_uninitialised>(1, 32, 0, s, x, fresh);
    copy_to_host(host, x, sizeof host, 0);
    int nans = 0;
    for (int i = 0; i < 32; i++) nans += isnan(host[i]) != 0;
    check(nans == 32, "32 NaN");
    device_free(fresh);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    s = device_open(0);
    x = on_device<float>(NULL, 64);
    test_bf16();
    test_grid();
    test_order();
    test_shuffles();
    test_sums();
    test_ldmatrix();
    test_mma();
    test_copies();
    test_no_race();
    test_elements();
    test_runtime();
    test_capabilities();
    for (int i = 0; i < BUGS; i++) test_bug(i);
    test_results();
    device_free(x);
    device_close(s);
    return test_finish();
}
