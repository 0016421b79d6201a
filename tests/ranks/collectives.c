// collectives.c: every function of common/training/comm.h on data that each rank can compute of all ranks, against
// plain sums. tests/test_comm.sh builds it over each transport and runs it with several numbers of ranks. Rank 0
// reports.
//
// Usage: collectives [bf16 | threads]     threads: says only how many threads of OpenMP each has
#include "common/training/comm.h"
#include "tests/test.h"

static comm_t comm;
static stream_t stream;

// Value i of a rank's data: uniform in (-1, 1).
static double value_of(int rank, size_t i) {
    uint64_t x = ((uint64_t)rank << 40) + i + 1;
    for (int round = 0; round < 3; round++) {
        x *= 0x9E3779B97F4A7C15ull;
        x ^= x >> 29;
    }
    return (double)(x >> 11) * (2.0 / 9007199254740992.0) - 1;
}

static double mean_of(size_t i) {
    double sum = 0;
    for (int k = 0; k < comm.size; k++) sum += (double)(floatS)value_of(k, i);
    return sum / comm.size;
}

enum { GUARD = 16 }; // values behind the data, which must stay as they are

// This rank's n values on the device, and a guard.
static floatS* upload(size_t n) {
    floatS* host = (floatS*)malloc_check((n + GUARD) * sizeof(floatS), "test");
    for (size_t i = 0; i < n + GUARD; i++) host[i] = i < n ? (floatS)value_of(comm.rank, i) : 12345;
    floatS* values = (floatS*)device_malloc((n + GUARD) * sizeof(floatS), "test");
    copy_to_device(values, host, (n + GUARD) * sizeof(floatS), 0);
    free(host);
    return values;
}

// The values back on the host; the device's are freed.
static floatS* download(floatS* values, size_t n) {
    floatS* host = (floatS*)malloc_check((n + GUARD) * sizeof(floatS), "test");
    stream_wait(stream);
    copy_to_host(host, values, (n + GUARD) * sizeof(floatS), 0);
    device_free(values);
    for (size_t i = n; i < n + GUARD; i++) check(host[i] == 12345, "what lies behind stays");
    return host;
}

// ||got - mean|| / ||mean|| over values [begin, end).
static double error_of(const floatS* got, size_t begin, size_t end) {
    double difference = 0, norm = 0;
    for (size_t i = begin; i < end; i++) {
        double want = mean_of(i);
        difference += (got[i] - want) * (got[i] - want);
        norm += want * want;
    }
    return sqrt(difference) / (norm > 0 ? sqrt(norm) : 1);
}

// A case fails where any rank fails.
static void end_case(void) {
    int failed = test_state.case_failed;
    if (failed) fprintf(stderr, "rank %d: %d checks of \"%s\" failed\n", comm.rank, failed, test_state.current);
    test_state.case_failed = comm_any(&comm, failed);
    test_end_case();
}

static void test_mean(size_t n, double bound) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: the mean of %zu values", comm.size, n);
    if (!test_case(name)) return;
    floatS* values = upload(n);
    comm_mean(&comm, values, n, stream);
    floatS* got = download(values, n);
    check_error("the mean", error_of(got, 0, n), bound);
    free(got);
    end_case();
}

// In three parts, from the end, beside work of the stream that leaves them alone.
static void test_mean_beside(size_t n, double bound) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: the mean of %zu values, begun in parts", comm.size, n);
    if (!test_case(name)) return;
    floatS *values = upload(n), *other = upload(n);
    const size_t from[4] = {n, n - n / 5, n / 3, 0};
    for (int i = 0; i < 3; i++) {
        comm_mean_begin(&comm, values + from[i + 1], from[i] - from[i + 1], stream);
        device_zero(other, n * sizeof(floatS), stream);
        copy_on_device(values, values, from[i + 1] * sizeof(floatS), stream); // what is not on its way is still free
    }
    comm_mean_end(&comm, stream);
    copy_on_device(other, values, n * sizeof(floatS), stream);
    floatS *got = download(values, n), *copied = download(other, n);
    check_error("the mean", error_of(got, 0, n), bound);
    check(!memcmp(got, copied, n * sizeof(floatS)), "what the stream does behind the end sees it");
    free(got);
    free(copied);
    end_case();
}

// In shares: reduce-scatter leaves this rank's share of the mean; gathered, it is what comm_mean gives, bit for bit.
static void test_shares(size_t shard) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: shares of %zu values, averaged and gathered", comm.size, shard);
    if (!test_case(name)) return;
    size_t n = comm.size * shard, own = comm.rank * shard;
    floatS *values = upload(n), *all = upload(n);
    comm_mean(&comm, all, n, stream);
    comm_reduce_scatter_mean(&comm, values, shard, stream);
    floatS* rest = (floatS*)malloc_check(n * sizeof(floatS), "test"); // nothing but the own share may count
    stream_wait(stream);
    for (size_t i = 0; i < n; i++) rest[i] = NAN;
    copy_to_device(values, rest, own * sizeof(floatS), 0);
    copy_to_device(values + own + shard, rest, (n - own - shard) * sizeof(floatS), 0);
    comm_all_gather(&comm, values, shard * sizeof(floatS), stream);
    floatS *got = download(values, n), *mean = download(all, n);
    check_error("the gathered mean", error_of(got, 0, n), sizeof(floatS) == 8 ? 1e-15 : 2e-7);
#ifndef COMM_NCCL // which promises no more than rounding
    check(!memcmp(got, mean, n * sizeof(floatS)), "the same bits as comm_mean");
#endif
    free(rest);
    free(got);
    free(mean);
    end_case();
}

// bytes that are no multiple of anything
static void test_bytes(size_t bytes) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: %zu bytes of rank 0, and %zu of each", comm.size, bytes, bytes);
    if (!test_case(name)) return;
    size_t all = comm.size * bytes;
    unsigned char* host = (unsigned char*)malloc_check(all + 1, "test");
    unsigned char* device = (unsigned char*)device_malloc(all + 1, "test");
    for (size_t i = 0; i < all; i++) host[i] = (unsigned char)(comm.rank * 31 + i % bytes * 7);
    copy_to_device(device, host, all, 0);
    comm_all_gather(&comm, device, bytes, stream);
    stream_wait(stream);
    copy_to_host(host, device, all, 0);
    int same = 1;
    for (size_t i = 0; i < all; i++) same = same && host[i] == (unsigned char)(i / bytes * 31 + i % bytes * 7);
    check(same, "each rank's bytes at their place");
    for (size_t i = 0; i < all; i++) host[i] = (unsigned char)(comm.rank * 31 + i * 7);
    copy_to_device(device, host, all, 0);
    comm_broadcast(&comm, device, bytes, stream);
    stream_wait(stream);
    copy_to_host(host, device, all, 0);
    same = 1;
    for (size_t i = 0; i < all; i++)
        same = same && host[i] == (unsigned char)((i < bytes ? 0 : comm.rank * 31) + i * 7);
    check(same, "rank 0's bytes, and nothing behind them");
    device_free(device);
    free(host);
    end_case();
}

// Sums on the host go in few pieces, since each is a round trip.
static void test_sums(int n, int most) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: %d sums on the host", comm.size, n);
    if (!test_case(name)) return;
    double *values = (double*)malloc_check((n + GUARD) * sizeof(double), "test"), error = 0;
    for (int i = 0; i < n + GUARD; i++) values[i] = i < n ? value_of(comm.rank, i) : 12345;
    uint64_t before = comm.number;
    comm_sum_host(&comm, values, n);
    check(comm.number - before <= (uint64_t)most, "in few pieces");
    for (int i = 0; i < n; i++) {
        double want = 0;
        for (int k = 0; k < comm.size; k++) want += value_of(k, i);
        if (!(fabs(values[i] - want) <= error)) error = fabs(values[i] - want);
    }
    check_error("the sums", error, 1e-15 * comm.size);
    for (int i = n; i < n + GUARD; i++) check(values[i] == 12345, "what lies behind stays");
    free(values);
    end_case();
}

static void test_flags(void) {
    char name[80];
    snprintf(name, sizeof name, "%d ranks: flags on the host", comm.size);
    if (!test_case(name)) return;
    check(comm_any(&comm, 0) == 0, "no flag is set");
    for (int k = 0; k < comm.size; k++) check(comm_any(&comm, comm.rank == k ? 7 : 0) == 1, "one flag is set");
    check(comm_is_first(&comm) == (comm.rank == 0), "rank 0 is the first");
    end_case();
}

int main(int argc, char** argv) {
    comm.time_limit = 20;
    comm.bf16 = argc > 1 && !strcmp(argv[1], "bf16");
    comm_open(&comm);
#ifdef _OPENMP
    if (argc > 1 && !strcmp(argv[1], "threads")) {
        printf("threads %d\n", omp_get_max_threads());
        comm_close(&comm);
        return 0;
    }
#endif
    stream = device_open(0);
    comm_attach(&comm, stream);
    if (!comm_is_first(&comm) && !freopen("/dev/null", "w", stdout)) fatal("no /dev/null");
    test_begin(1, argv);
    static const size_t sizes[9] = {0, 1, 2, 3, 7, 1000, 2003, 4000, 123457};
    // bf16: a rounding of each rank's values, whose errors add up as the values do, and one of the sum: 2^-9 each
    double bound = comm.bf16 && comm.size > 1 ? 1.0 / 256 : sizeof(floatS) == 8 ? 1e-15 : 2e-7;
    for (int i = 0; i < 9; i++) test_mean(sizes[i], bound);
    for (int i = 0; i < 9; i++) test_mean_beside(sizes[i], bound);
    if (!comm.bf16) {
        test_shares(1);
        test_shares(1001);
        test_shares(20000);
        test_bytes(1);
        test_bytes(9001); // more than one piece
        test_sums(600, 1);
        test_sums(70001, 2);
        test_flags();
    }
    int status = test_finish();
    comm_close(&comm);
    device_close(stream);
    return status;
}
