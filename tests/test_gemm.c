// The matrix product in float, as programs run it: gemm() against gemm_naive(), and the promise that the bits of a row
// depend on nothing beside it (dev/cpu/gemm.h), also in a linear layer. tests/test_matmul.c has the same in double.
// defines: gemm, gemm_naive, matmul_forward, matmul_gelu_forward; the operations with what is inside them
#include "common/ops.cu"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_float, test_normal
#include "tests/test.h"

static float* random_floats(size_t n) {
    float* p = (float*)malloc((n ? n : 1) * sizeof(float));
    for (size_t i = 0; i < n; i++) p[i] = (float)test_normal();
    return p;
}

// All four forms; rows of the operands are further apart than they are long; C holds NaN where beta = 0.
static void check_product(int M, int N, int K, float alpha, float beta) {
    for (int form = 0; form < 4; form++) {
        gemm_op_t ta = form & 1 ? TRANSPOSED : PLAIN, tb = form & 2 ? TRANSPOSED : PLAIN;
        int lda = (ta == PLAIN ? K : M) + 3, ldb = (tb == PLAIN ? N : K) + 5, ldc = N + 1;
        float* A = random_floats((size_t)(ta == PLAIN ? M : K) * lda);
        float* B = random_floats((size_t)(tb == PLAIN ? K : N) * ldb);
        float* C = random_floats((size_t)M * ldc);
        float* want = random_floats((size_t)M * ldc);
        for (int i = 0; beta == 0 && i < M * ldc; i++) C[i] = i % ldc < N ? NAN : 7;
        memcpy(want, C, (size_t)M * ldc * sizeof(float));
        gemm(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
        gemm_naive(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, want, ldc);
        check_error("C", relative_error_float(C, want, (size_t)M * ldc), 2e-6);
        free(A), free(B), free(C), free(want);
    }
}

static void test_sizes(void) {
    static const int sizes[][3] = {{1, 1, 1},    {1, 17, 5},   {5, 1, 400},  {3, 33, 0},   {12, 32, 16},
                                   {13, 31, 17}, {25, 49, 33}, {7, 64, 384}, {17, 17, 32}, {37, 513, 385},
                                   {11, 90, 769}, {64, 1030, 41}, {29, 257, 770}, {16, 65, 7}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char name[80];
        snprintf(name, sizeof name, "gemm %d x %d x %d", sizes[i][0], sizes[i][1], sizes[i][2]);
        if (!test_case(name)) continue;
        check_product(sizes[i][0], sizes[i][1], sizes[i][2], 1, 0);
        check_product(sizes[i][0], sizes[i][1], sizes[i][2], -0.5f, 1);
        check_product(sizes[i][0], sizes[i][1], sizes[i][2], 1.5f, 0.25f);
        test_end_case();
    }
}

// A product of many rows and columns, and pieces of it computed alone: the same bits.
static void test_bits_of_pieces(float alpha) {
    char name[96];
    snprintf(name, sizeof name, "gemm, alpha %g: a number's bits depend on row, column and K alone", alpha);
    if (!test_case(name)) return;
    enum { M = 61, N = 600, K = 901 };
    float *A = random_floats(M * K), *B = random_floats(N * K), *C = random_floats(M * N);
    float* piece = random_floats(M * N);
    gemm(PLAIN, TRANSPOSED, M, N, K, alpha, A, K, B, K, 0, C, N);
    static const int pieces[][4] = {{0, 1, 0, N}, {60, 1, 0, N}, {5, 7, 0, N}, {0, M, 17, 1}, {13, 30, 511, 70}};
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
        int row = pieces[k][0], rows = pieces[k][1], col = pieces[k][2], cols = pieces[k][3], differ = 0;
        gemm(PLAIN, TRANSPOSED, rows, cols, K, alpha, A + row * K, K, B + col * K, K, 0, piece, cols);
        for (int i = 0; i < rows; i++) {
            differ += memcmp(piece + i * cols, C + (row + i) * N + col, cols * sizeof(float)) != 0;
        }
        check(differ == 0, "a piece alone has the bits of the whole");
    }
    free(A), free(B), free(C), free(piece);
    test_end_case();
}

// One row alone, few, and many, which a linear layer cuts and rearranges in different ways: the same bits, GELU too.
static void test_bits_of_rows(void) {
    if (!test_case("a linear layer: the bits of a row do not depend on how many there are")) return;
    enum { N = 611, C = 901, OC = 655 };
    static const int pieces[][2] = {{0, 1}, {3, 7}, {0, 8}, {300, 33}, {100, 500}, {N - 1, 1}, {N - 257, 257}};
    float *x = random_floats(N * C), *w = random_floats(OC * C), *bias = random_floats(OC);
    float *pre = random_floats(N * OC), *out = random_floats(N * OC), *plain = random_floats(N * OC);
    float *pre_piece = random_floats(N * OC), *piece = random_floats(N * OC);
    for (int k = 0; k < 2; k++) { // with a bias and without
        matmul_gelu_forward(out, pre, x, w, k ? NULL : bias, N, C, OC, ACT_GELU, 0);
        matmul_forward(plain, x, w, k ? NULL : bias, N, C, OC, 0);
        check(!memcmp(plain, pre, N * OC * sizeof(float)), "what stands before GELU is the plain product");
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
            int row = pieces[i][0], rows = pieces[i][1];
            matmul_gelu_forward(piece, pre_piece, x + row * C, w, k ? NULL : bias, rows, C, OC, ACT_GELU, 0);
            check(!memcmp(pre_piece, pre + row * OC, rows * OC * sizeof(float)), "rows alone have the bits of all");
            check(!memcmp(piece, out + row * OC, rows * OC * sizeof(float)), "and so behind GELU");
        }
    }
    free(x), free(w), free(bias), free(pre), free(out), free(plain), free(pre_piece), free(piece);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_sizes();
    test_bits_of_pieces(1);
    test_bits_of_pieces(0.3f);
    test_bits_of_rows();
    return test_finish();
}
