// test.h: the test harness. A test program is a list of cases; each reports relative errors against a bound.
//
// To add a test: write tests/test_<subject>.c with a `main` that calls test_begin(argc, argv), then for each case
//     if (test_case("what is checked")) {
//         check_error("dx", relative_error_float(got, want, n), 1e-6);
//         check(condition, "why");
//         test_end_case();
//     }
// and finally returns test_finish(). `make test` finds the file by its name. A case can be run alone:
// build/cpu/test_x SUBSTRING.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char* filter;  // run only the cases whose name contains this, or NULL
    const char* current; // name of the case that is running
    int passed, failed;
    int case_failed;     // failed checks of this case
    double worst;        // largest relative error seen in this case
    uint64_t random;     // state of the generator
} test_state_t;

static test_state_t test_state;

static inline void test_begin(int argc, char** argv) {
    memset(&test_state, 0, sizeof test_state);
    test_state.filter = argc > 1 ? argv[1] : NULL;
    test_state.random = 0x9E3779B97F4A7C15ull;
}

// Starts a case; 0 when the filter leaves it out. The random numbers of a case depend on its name alone.
static inline int test_case(const char* name) {
    if (test_state.filter && !strstr(name, test_state.filter)) return 0;
    test_state.current = name;
    test_state.case_failed = 0;
    test_state.worst = 0;
    test_state.random = 1469598103934665603ull;
    for (const char* c = name; *c; c++) test_state.random = (test_state.random ^ (unsigned char)*c) * 1099511628211ull;
    return 1;
}

static inline void test_end_case(void) {
    if (test_state.case_failed) test_state.failed++; else test_state.passed++;
    printf("%s %-72s rel %.1e\n", test_state.case_failed ? "FAIL" : "ok  ", test_state.current, test_state.worst);
    fflush(stdout);
}

static inline int test_finish(void) {
    printf("%d passed, %d failed\n", test_state.passed, test_state.failed);
    return test_state.failed ? 1 : 0;
}

// A condition that must hold.
static inline void check(int condition, const char* what) {
    if (condition) return;
    test_state.case_failed++;
    printf("     %s: %s does not hold\n", test_state.current, what);
}

// One relative error against its bound; a NaN fails.
static inline void check_error(const char* what, double error, double bound) {
    if (!(error <= test_state.worst)) test_state.worst = error;
    if (error <= bound) return;
    test_state.case_failed++;
    printf("     %s: %s is off by %.3e, bound %.1e\n", test_state.current, what, error, bound);
}

// ||a - b|| / ||b||
#define DEFINE_RELATIVE_ERROR(NAME, T)                                         \
    static inline double NAME(const T* a, const T* b, size_t n) {              \
        double difference = 0, norm = 0;                                       \
        for (size_t i = 0; i < n; i++) {                                       \
            difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);       \
            norm += (double)b[i] * b[i];                                       \
        }                                                                      \
        return sqrt(difference) / (sqrt(norm) > 0 ? sqrt(norm) : 1);           \
    }
DEFINE_RELATIVE_ERROR(relative_error_float, float)
DEFINE_RELATIVE_ERROR(relative_error_double, double)

// Uniform in (-1, 1), and a sample that is close to normal.
static inline double test_uniform(void) {
    uint64_t x = test_state.random += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    return ((double)(x >> 11) + 0.5) * (2.0 / 9007199254740992.0) - 1.0;
}
static inline double test_normal(void) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += test_uniform();
    return sum / 2;
}
