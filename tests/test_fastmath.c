// The vectorised exp, sigmoid and normal distribution function, in float, against the C library in double.

// defines: fast_exp, fast_sigmoid, gelu_values, gelu_backward; the operations with what is inside them
#include "common/ops.cu"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error
#include "tests/test.h"

static void keep_worst(double* worst, double error) {
    if (!(error <= *worst)) *worst = error; // a NaN is kept, too
}

static void test_exp(void) {
    if (!test_case("fast_exp")) return;
    double worst = 0;
    for (double x = -87.3; x < 88.7; x += 1.3e-4) keep_worst(&worst, fabs(fast_exp((float)x) / exp((float)x) - 1));
    check_error("exp", worst, 2e-7);
    check(fast_exp(0) == 1, "exp(0) = 1");
    check(fast_exp(-INFINITY) == 0 && fast_exp(-110) == 0, "far below, exp is 0");
    check(isinf(fast_exp(INFINITY)) && isinf(fast_exp(90)), "far above, exp is infinite");
    check(isnan(fast_exp(NAN)), "exp(NaN) is NaN");
    check_error("denormal", fabs(fast_exp(-100) - exp(-100)), 1.5e-45);
    test_end_case();
}

static void test_sigmoid(void) {
    if (!test_case("fast_sigmoid")) return;
    double worst = 0;
    for (double x = -87; x < 87; x += 1.3e-4) {
        keep_worst(&worst, fabs(fast_sigmoid((float)x) * (1 + exp(-(double)(float)x)) - 1));
    }
    check_error("sigmoid", worst, 3e-7);
    check(fast_sigmoid(-200) == 0 && fast_sigmoid(200) == 1, "the limits are 0 and 1");
    test_end_case();
}

static void test_normal_cdf(void) {
    if (!test_case("fast_normal_cdf and its density")) return;
    double near_zero = 0, far = 0; // the two ranges that fastmath.h speaks of
    for (double u = -13; u < 13; u += 1.3e-5) {
        float x = (float)u, density;
        double* worst = u > -5 && u < 5 ? &near_zero : &far;
        keep_worst(worst, fabs(fast_normal_cdf(x, &density) / (0.5 * erfc(-x / sqrt(2.0))) - 1));
        keep_worst(worst, fabs(density / (exp(-0.5 * (double)x * x) / sqrt(2 * M_PI)) - 1));
    }
    check_error("Phi or its density for |u| < 5", near_zero, 1e-6);
    check_error("Phi or its density for |u| < 13", far, 5e-6);
    test_end_case();
}

// Values, as the model uses them: absolute error against the size of the input.
static void test_gelu(void) {
    if (!test_case("gelu and gelu' in float")) return;
    enum { N = 8191 };
    static float u[N], out[N], one[N], slope[N];
    double worst = 0, worst_slope = 0;
    for (int form = 0; form < 3; form++) {
        activation_t act = form == 2 ? ACT_QUICK_GELU : form ? ACT_GELU_TANH : ACT_GELU;
        for (int i = 0; i < N; i++) u[i] = (float)(12 * test_uniform()), one[i] = 1, out[i] = slope[i] = NAN;
        gelu_values(out, u, N, act);
        gelu_backward(slope, one, u, N, act, 0);
        for (int i = 0; i < N; i++) {
            double x = u[i], k = sqrt(2 / M_PI), th = tanh(k * (x + 0.044715 * x * x * x));
            double cdf = form ? 0.5 * (1 + th) : 0.5 * erfc(-x / sqrt(2.0));
            double rest = form ? 0.5 * x * (1 - th * th) * k * (1 + 0.134145 * x * x)
                               : x * exp(-0.5 * x * x) / sqrt(2 * M_PI);
            if (form == 2) cdf = 1 / (1 + exp(-1.702 * x)), rest = 1.702 * x * cdf / (1 + exp(1.702 * x));
            keep_worst(&worst, fabs(out[i] - x * cdf) / (fabs(x) + 1e-3));
            keep_worst(&worst_slope, fabs(slope[i] - (cdf + rest)));
        }
    }
    check_error("gelu", worst, 4e-7);
    check_error("gelu'", worst_slope, 6e-7);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_exp();
    test_sigmoid();
    test_normal_cdf();
    test_gelu();
    return test_finish();
}
