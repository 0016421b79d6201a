// The small operations of the diffusion transformer: QK-norm and rotary embedding, SiLU and SwiGLU, features of a time,
// the condition, the start of the residual stream, patches of many channels and back.

// defines: qknorm_rope_*, rope_grid, silu_*, swiglu_*, geglu_forward, timestep_features, condition_*,
//          position_add_forward, to_floatX, patchify_forward, unpatchify_*
#include "common/ops.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error, relative_error_double
#include "tests/test.h"
// defines: check_gradient, random_buffer, poisoned_buffer, dot
#include "tests/gradient.h"
// defines: check_parameter_gradient, check_any_thread_count, result_t, copy_of
#include "tests/operation.h"

// ---------------------------------------------------------------------------------------------------------------------
// QK-norm and rotary embedding

typedef struct {
    int B, T, NH, HS, norm;
    rope_pairs_t pairs;
    double eps;
    size_t n, n_kept, n_heads; // values of qkv, those of q and k alone, head vectors of q and k
    double *x, *qkv, *raw, *rstd, *q_weight, *k_weight, *rope;
    double *dout, *dqkv, *dq_weight, *dk_weight;
} rope_t;

static void rope_forward(rope_t* r) {
    memcpy(r->qkv, r->x, r->n * sizeof(double));
    qknorm_rope_forward(r->qkv, r->norm ? r->raw : NULL, r->norm ? r->rstd : NULL, r->norm ? r->q_weight : NULL,
                        r->norm ? r->k_weight : NULL, r->rope, r->B, r->T, r->NH, r->HS, r->pairs, r->eps, 0);
}

static double rope_objective(void* context) {
    rope_t* r = (rope_t*)context;
    rope_forward(r);
    return dot(r->qkv, r->dout, r->n);
}

static void rope_backward(void* context) {
    rope_t* r = (rope_t*)context;
    memcpy(r->dqkv, r->dout, r->n * sizeof(double));
    qknorm_rope_backward(r->dqkv, r->norm ? r->dq_weight : NULL, r->norm ? r->dk_weight : NULL,
                         r->norm ? r->raw : NULL, r->norm ? r->rstd : NULL, r->norm ? r->q_weight : NULL,
                         r->norm ? r->k_weight : NULL, r->rope, r->B, r->T, r->NH, r->HS, r->pairs, 0);
}

static void rope_both(void* context) {
    rope_objective(context);
    rope_backward(context);
}

// One output by the definition: value c of head `head` (queries first, then keys, then values) of a token.
static double rope_value(const rope_t* r, size_t row, int head, int c) {
    const double* z = r->x + (row * 3 * r->NH + head) * r->HS;
    if (head >= 2 * r->NH) return z[c];
    long double squares = 0;
    for (int i = 0; i < r->HS; i++) squares += z[i] * z[i];
    double rstd = r->norm ? (double)(1 / sqrtl(squares / r->HS + r->eps)) : 1;
    const double* weight = head < r->NH ? r->q_weight : r->k_weight;
    int half = r->HS / 2, pair = r->pairs == ROPE_HALVES ? c % half : c / 2;
    int first = r->pairs == ROPE_HALVES ? pair : 2 * pair, second = r->pairs == ROPE_HALVES ? pair + half : first + 1;
    double a = z[first] * rstd * (r->norm ? weight[first] : 1), b = z[second] * rstd * (r->norm ? weight[second] : 1);
    const double* turn = r->rope + (row % r->T * half + pair) * 2;
    return c == first ? a * turn[0] - b * turn[1] : b * turn[0] + a * turn[1];
}

static void rope_check_values(const rope_t* r) {
    double* want = poisoned_buffer(r->n);
    for (size_t i = 0; i < r->n; i++) {
        int c = (int)(i % r->HS), head = (int)(i / r->HS % (3 * r->NH));
        want[i] = rope_value(r, i / r->HS / (3 * r->NH), head, c);
    }
    check_error("qkv", relative_error_double(r->qkv, want, r->n), 1e-13);
    free(want);
    size_t token = 3 * (size_t)r->NH * r->HS, kept = 2 * (size_t)r->NH * r->HS;
    int same = 1;
    for (size_t row = 0; r->norm && row < (size_t)r->B * r->T; row++) {
        same &= !memcmp(r->raw + row * kept, r->x + row * token, kept * sizeof(double));
    }
    check(same, "raw holds queries and keys as they came");
}

static void test_rope(const char* name, int B, int T, int NH, int HS, rope_pairs_t pairs, int norm, double eps) {
    if (!test_case(name)) return;
    rope_t r;
    r.B = B, r.T = T, r.NH = NH, r.HS = HS, r.pairs = pairs, r.norm = norm, r.eps = eps;
    r.n_heads = (size_t)B * T * 2 * NH, r.n_kept = r.n_heads * HS, r.n = r.n_kept / 2 * 3;
    r.x = random_buffer(r.n), r.qkv = poisoned_buffer(r.n), r.raw = poisoned_buffer(r.n_kept);
    r.rstd = poisoned_buffer(r.n_heads), r.q_weight = random_buffer(HS), r.k_weight = random_buffer(HS);
    r.rope = random_buffer((size_t)T * HS), r.dout = random_buffer(r.n), r.dqkv = poisoned_buffer(r.n);
    r.dq_weight = random_buffer(HS), r.dk_weight = random_buffer(HS);
    for (int i = 0; i < T * HS / 2; i++) { // some angle for every token and pair
        double angle = 4 * test_uniform();
        r.rope[2 * i] = cos(angle), r.rope[2 * i + 1] = sin(angle);
    }
    rope_both(&r);
    rope_check_values(&r);
    check_gradient("dqkv", rope_objective, &r, r.x, r.dqkv, r.n);
    if (norm) {
        check_parameter_gradient("dq_weight", rope_objective, rope_backward, &r, r.q_weight, r.dq_weight, HS);
        check_parameter_gradient("dk_weight", rope_objective, rope_backward, &r, r.k_weight, r.dk_weight, HS);
        rope_both(&r); // weights without gradients change nothing else
        double* frozen = copy_of(r.dout, r.n);
        qknorm_rope_backward(frozen, NULL, NULL, r.raw, r.rstd, r.q_weight, r.k_weight, r.rope, B, T, NH, HS, pairs, 0);
        check(!memcmp(frozen, r.dqkv, r.n * sizeof(double)), "dqkv is the same when the weights are frozen");
        free(frozen);
        double* forgotten = copy_of(r.x, r.n); // sampling keeps nothing
        qknorm_rope_forward(forgotten, NULL, NULL, r.q_weight, r.k_weight, r.rope, B, T, NH, HS, pairs, eps, 0);
        check(!memcmp(forgotten, r.qkv, r.n * sizeof(double)), "qkv is the same when nothing is kept");
        free(forgotten);
    }
    const result_t results[] = {
        {"qkv", r.qkv, r.n}, {"dqkv", r.dqkv, r.n}, {"dq_weight", r.dq_weight, (size_t)HS},
        {"dk_weight", r.dk_weight, (size_t)HS}, {"raw", r.raw, r.n_kept}, {"rstd", r.rstd, r.n_heads},
    };
    check_any_thread_count(rope_both, &r, results, 6);
    double* all[] = {r.x, r.qkv, r.raw, r.rstd, r.q_weight, r.k_weight, r.rope, r.dout, r.dqkv, r.dq_weight,
                     r.dk_weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    test_end_case();
}

// Every number by the definition: periods, coordinates between -1 and 1, prefix tokens that stay.
static void test_rope_grid(const char* name, int P, int GH, int GW, int HS, double base) {
    if (!test_case(name)) return;
    size_t n = ((size_t)P + GH * GW) * HS;
    double *rope = poisoned_buffer(n), *want = poisoned_buffer(n);
    rope_grid(rope, P, GH, GW, HS, base, 0);
    for (size_t i = 0; i < n / 2; i++) {
        int t = (int)(i / (HS / 2)) - P, axis = (int)(i % (HS / 2)) / (HS / 4), k = (int)(i % (HS / 4));
        double place = axis ? (t % GW + 0.5) / GW : (t / GW + 0.5) / GH;
        double angle = t < 0 ? 0 : 2 * acos(-1) * (2 * place - 1) / pow(base, 2.0 * k / (HS / 2));
        want[2 * i] = cos(angle), want[2 * i + 1] = sin(angle);
    }
    check_error("rope", relative_error_double(rope, want, n), 1e-14);
    free(rope), free(want);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// SiLU and SwiGLU

typedef struct {
    size_t N;
    int F; // 0: SiLU of N values
    size_t n_in, n_out;
    double *x, *out, *dout, *dx, *dbias; // dbias (2F): of SwiGLU
} gate_t;

static double gate_objective(void* context) {
    gate_t* g = (gate_t*)context;
    if (g->F) swiglu_forward(g->out, g->x, g->N, g->F, 0);
    else silu_forward(g->out, g->x, g->N, 0);
    return dot(g->out, g->dout, g->n_out);
}

static void gate_both(void* context) {
    gate_t* g = (gate_t*)context;
    gate_objective(context);
    memset(g->dbias, 0, 2 * g->F * sizeof(double));
    if (g->F) swiglu_backward(g->dx, g->dbias, g->dout, g->x, g->N, g->F, 0);
    else silu_backward(g->dx, g->dout, g->x, g->N, 0);
}

// A bias in front of SwiGLU is added to every row: its gradient is the sum of dx's rows, added to what is there.
static void test_gate_bias(gate_t* g) {
    double* want = copy_of(g->dbias, 2 * g->F);
    for (size_t i = 0; i < g->n_in; i++) want[i % (2 * g->F)] += g->dx[i];
    double* dx = poisoned_buffer(g->n_in);
    swiglu_backward(dx, g->dbias, g->dout, g->x, g->N, g->F, 0);
    check_error("dbias", relative_error_double(g->dbias, want, 2 * g->F), 1e-13);
    swiglu_backward(g->dx, NULL, g->dout, g->x, g->N, g->F, 0);
    check(!memcmp(dx, g->dx, g->n_in * sizeof(double)), "dx is the same without it");
    free(want), free(dx);
}

static void test_geglu(const char* name, size_t N, int F) {
    if (!test_case(name)) return;
    double *x = random_buffer(2 * N * F), *out = poisoned_buffer(N * F), *want = poisoned_buffer(N * F);
    geglu_forward(out, x, N, F, 0);
    for (size_t i = 0; i < N * F; i++) {
        double a = x[i / F * 2 * F + i % F], b = x[i / F * 2 * F + F + i % F];
        want[i] = 0.5 * a * (1 + tanh(sqrt(2 / M_PI) * (a + 0.044715 * a * a * a))) * b;
    }
    check_error("out", relative_error_double(out, want, N * F), 1e-13);
    free(x), free(out), free(want);
    test_end_case();
}

static void test_gate(const char* name, size_t N, int F) {
    if (!test_case(name)) return;
    gate_t g;
    g.N = N, g.F = F, g.n_in = F ? 2 * N * F : N, g.n_out = F ? N * F : N;
    g.x = random_buffer(g.n_in), g.dout = random_buffer(g.n_out);
    g.out = poisoned_buffer(g.n_out), g.dx = poisoned_buffer(g.n_in), g.dbias = random_buffer(2 * F + 1);
    double* want = poisoned_buffer(g.n_out);
    gate_both(&g);
    for (size_t i = 0; i < g.n_out; i++) {
        size_t at = F ? i / F * 2 * F + i % F : i;
        want[i] = g.x[at] / (1 + exp(-g.x[at])) * (F ? g.x[at + F] : 1);
    }
    check_error("out", relative_error_double(g.out, want, g.n_out), 1e-14);
    free(want);
    check_gradient("dx", gate_objective, &g, g.x, g.dx, g.n_in);
    const result_t results[] = {{"out", g.out, g.n_out}, {"dx", g.dx, g.n_in}, {"dbias", g.dbias, 2 * (size_t)F}};
    check_any_thread_count(gate_both, &g, results, F ? 3 : 2);
    if (F) test_gate_bias(&g);
    if (!F) {
        double* d = copy_of(g.dout, N);
        silu_backward(d, d, g.x, N, 0);
        check(!memcmp(d, g.dx, N * sizeof(double)), "in place it is the same");
        free(d);
    }
    free(g.x), free(g.out), free(g.dout), free(g.dx), free(g.dbias);
    test_end_case();
}

// Far from zero SiLU is x, or 0; its slope 1, or 0. Nothing overflows.
static void test_silu_far(void) {
    if (!test_case("silu far from zero")) return;
    double x[4] = {1e3, -1e3, 1e30, -1e30}, one[4] = {1, 1, 1, 1}, out[4], dx[4];
    silu_forward(out, x, 4, 0);
    silu_backward(dx, one, x, 4, 0);
    check(out[0] == 1e3 && out[1] == 0 && out[2] == 1e30 && out[3] == 0, "values");
    check(dx[0] == 1 && dx[1] == 0 && dx[2] == 1 && dx[3] == 0, "slopes");
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Time and label

static void test_features(void) {
    if (!test_case("timestep_features")) return;
    enum { B = 4, HALF = 128 };
    double t[B] = {0, 0.5, 1, 0.123};
    double* out = poisoned_buffer(B * 2 * HALF);
    timestep_features(out, t, 1, B, HALF, 0);
    for (int b = 0; b < B; b++) for (int k = 0; k < HALF; k++) {
        double angle = t[b] * pow(10000, -(double)k / HALF);
        check_error("cosine", fabs(out[b * 2 * HALF + k] - cos(angle)), 1e-14);
        check_error("sine", fabs(out[b * 2 * HALF + HALF + k] - sin(angle)), 1e-14);
    }
    const double* half = out + 2 * HALF; // values of the reference at t = 0.5, rounded
    check_error("cosine 0", fabs(half[0] - 0.877583), 5e-7);
    check_error("sine 0", fabs(half[128] - 0.479426), 5e-7);
    check_error("cosine 64", fabs(half[64] - 0.9999875), 5e-8);
    check_error("sine 64", fabs(half[192] - 0.0049999792), 5e-11);
    double *stretched = poisoned_buffer(B * 2 * HALF), times[B] = {0, 500, 1000, 123};
    timestep_features(stretched, t, 1000, B, HALF, 0);
    timestep_features(out, times, 1, B, HALF, 0);
    check(!memcmp(stretched, out, B * 2 * HALF * sizeof(double)), "1000 t is the time 1000 t");
    free(stretched);
    free(out);
    test_end_case();
}

typedef struct {
    int rows, B, C;
    int* labels;
    double *time, *table, *c, *out, *dout, *dtime, *dtable;
} condition_t;

static double condition_objective(void* context) {
    condition_t* p = (condition_t*)context;
    condition_forward(p->out, p->c, p->time, p->table, p->labels, p->rows, p->B, p->C, 0);
    return dot(p->out, p->dout, (size_t)p->B * p->C);
}

static void condition_run_backward(void* context) {
    condition_t* p = (condition_t*)context;
    condition_backward(p->dtime, p->dtable, p->dout, p->c, p->labels, p->rows, p->B, p->C, 0);
}

static void condition_both(void* context) {
    condition_objective(context);
    condition_run_backward(context);
}

static void test_condition(const char* name, int rows, int B, int C) {
    if (!test_case(name)) return;
    condition_t p;
    size_t n = (size_t)B * C, n_table = (size_t)rows * C;
    p.rows = rows, p.B = B, p.C = C, p.labels = (int*)malloc(B * sizeof(int));
    for (int b = 0; b < B; b++) p.labels[b] = b * b % rows; // squares: some labels often, some never
    p.time = random_buffer(n), p.table = random_buffer(n_table), p.dout = random_buffer(n);
    p.out = poisoned_buffer(n), p.c = poisoned_buffer(n), p.dtime = poisoned_buffer(n);
    p.dtable = random_buffer(n_table);
    double* want = poisoned_buffer(n);
    condition_both(&p);
    for (size_t i = 0; i < n; i++) {
        double c = p.time[i] + p.table[(size_t)p.labels[i / C] * C + i % C];
        want[i] = c / (1 + exp(-c));
    }
    check_error("out", relative_error_double(p.out, want, n), 1e-14);
    check_gradient("dtime", condition_objective, &p, p.time, p.dtime, n);
    check_parameter_gradient("dtable", condition_objective, condition_run_backward, &p, p.table, p.dtable, n_table);
    double* frozen = poisoned_buffer(n);
    condition_backward(frozen, NULL, p.dout, p.c, p.labels, rows, B, C, 0);
    check(!memcmp(frozen, p.dtime, n * sizeof(double)), "dtime is the same when the table is frozen");
    const result_t results[] = {
        {"out", p.out, n}, {"c", p.c, n}, {"dtime", p.dtime, n}, {"dtable", p.dtable, n_table},
    };
    check_any_thread_count(condition_both, &p, results, 4);
    double* all[] = {p.time, p.table, p.c, p.out, p.dout, p.dtime, p.dtable, want, frozen};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(p.labels);
    test_end_case();
}

typedef struct {
    int B, C;
    double *in[3], *c, *out, *dout, *dsum;
} sum_t;

static double sum_objective(void* context) {
    sum_t* p = (sum_t*)context;
    condition_sum_forward(p->out, p->c, p->in[0], p->in[1], p->in[2], p->B, p->C, 0);
    return dot(p->out, p->dout, (size_t)p->B * p->C);
}

static void sum_both(void* context) {
    sum_t* p = (sum_t*)context;
    sum_objective(context);
    condition_sum_backward(p->dsum, p->dout, p->c, p->B, p->C, 0);
}

// Of one, two and three vectors: the gradient is that of each.
static void test_condition_sum(const char* name, int B, int C) {
    if (!test_case(name)) return;
    size_t n = (size_t)B * C;
    sum_t p = {B, C, {random_buffer(n), NULL, NULL}, poisoned_buffer(n), poisoned_buffer(n), random_buffer(n),
               poisoned_buffer(n)};
    for (int vectors = 1; vectors <= 3; vectors++) {
        if (vectors > 1) p.in[vectors - 1] = random_buffer(n);
        sum_both(&p);
        for (size_t i = 0; i < n; i++) {
            double c = p.in[0][i] + (p.in[1] ? p.in[1][i] : 0) + (p.in[2] ? p.in[2][i] : 0);
            check_error("out", fabs(p.out[i] - c / (1 + exp(-c))), 1e-14);
        }
        for (int k = 0; k < vectors; k++) check_gradient("dsum", sum_objective, &p, p.in[k], p.dsum, n);
    }
    const result_t results[] = {{"out", p.out, n}, {"c", p.c, n}, {"dsum", p.dsum, n}};
    check_any_thread_count(sum_both, &p, results, 3);
    double* all[] = {p.in[0], p.in[1], p.in[2], p.c, p.out, p.dout, p.dsum};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The ends of the network

static void test_position_add(const char* name, int B, int T, int C) {
    if (!test_case(name)) return;
    size_t n = (size_t)B * T * C;
    double *x = random_buffer(n), *pos = random_buffer((size_t)T * C), *out = poisoned_buffer(n);
    double* back = poisoned_buffer(n);
    position_add_forward(out, x, pos, B, T, C, 0);
    int sums = 1;
    for (size_t i = 0; i < n; i++) sums &= out[i] == x[i] + pos[i % ((size_t)T * C)];
    check(sums, "out = x + pos");
    to_floatX(back, out, n, 0);
    check(!memcmp(back, out, n * sizeof(double)), "to_floatX is a copy where both are double");
    free(x), free(pos), free(out), free(back);
    test_end_case();
}

typedef struct {
    int B, H, W, C, patch;
    size_t n;
    double *x, *out, *dout, *dx;
} patches_t;

static double patches_objective(void* context) {
    patches_t* p = (patches_t*)context;
    unpatchify_forward(p->out, p->x, p->B, p->H, p->W, p->C, p->patch, 0);
    return dot(p->out, p->dout, p->n);
}

static void patches_both(void* context) {
    patches_t* p = (patches_t*)context;
    patches_objective(context);
    unpatchify_backward(p->dx, p->dout, p->B, p->H, p->W, p->C, p->patch, 0);
}

// Every value has a place of its own: both operations are permutations, checked index by index. The two orders inside
// a token differ: (c, ky, kx) where an image is taken apart, (ky, kx, c) where it is put together.
static void test_patches(const char* name, int B, int GH, int GW, int C, int patch) {
    if (!test_case(name)) return;
    patches_t p = {B, GH * patch, GW * patch, C, patch, 0, NULL, NULL, NULL, NULL};
    int length = C * patch * patch;
    p.n = (size_t)B * GH * GW * length;
    p.x = random_buffer(p.n), p.dout = random_buffer(p.n), p.out = poisoned_buffer(p.n), p.dx = poisoned_buffer(p.n);
    double* columns = poisoned_buffer(p.n);
    patches_both(&p);
    patchify_forward(columns, p.out, B, p.H, p.W, C, patch, 0);
    int put_together = 1, taken_apart = 1;
    for (size_t i = 0; i < p.n; i++) {
        int c = (int)(i % C), x = (int)(i / C % p.W), y = (int)(i / C / p.W % p.H);
        size_t b = i / C / p.W / p.H, token = (b * GH + y / patch) * GW + x / patch;
        int ky = y % patch, kx = x % patch;
        put_together &= p.out[i] == p.x[token * length + (ky * patch + kx) * C + c];
        taken_apart &= p.out[i] == columns[token * length + (c * patch + ky) * patch + kx];
    }
    check(put_together, "unpatchify: (ky, kx, c)");
    check(taken_apart, "patchify: (c, ky, kx)");
    check_gradient("dx", patches_objective, &p, p.x, p.dx, p.n);
    const result_t results[] = {{"out", p.out, p.n}, {"dx", p.dx, p.n}};
    check_any_thread_count(patches_both, &p, results, 2);
    free(p.x), free(p.out), free(p.dout), free(p.dx), free(columns);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_rope("rotary embedding", 2, 5, 3, 8, ROPE_NEIGHBOURS, 0, 0);
    test_rope("rotary embedding, one pair", 1, 1, 1, 2, ROPE_NEIGHBOURS, 0, 0);
    test_rope("rotary embedding, pairs of halves", 2, 7, 3, 12, ROPE_HALVES, 0, 0);
    test_rope("rotary embedding, one pair of halves", 1, 3, 1, 2, ROPE_HALVES, 0, 0);
    test_rope("QK-norm and rotary embedding", 3, 13, 2, 12, ROPE_NEIGHBOURS, 1, 1e-6);
    test_rope("QK-norm and rotary embedding, heads of 72", 2, 17, 2, 72, ROPE_NEIGHBOURS, 1, 1e-6);
    test_rope("QK-norm and rotary embedding, one pair, large eps", 1, 3, 1, 2, ROPE_NEIGHBOURS, 1, 0.3);
    test_rope("QK-norm and rotary embedding, pairs of halves", 2, 11, 3, 20, ROPE_HALVES, 1, 1e-6);
    test_rope_grid("rotations of a grid, 5 tokens in front", 5, 3, 7, 64, 100);
    test_rope_grid("rotations of a grid, alone, another base", 0, 5, 2, 12, 10000);
    test_rope_grid("rotations of one patch", 1, 1, 1, 4, 100);
    test_gate("silu", 20011, 0);
    test_gate("silu, one value", 1, 0);
    test_silu_far();
    test_gate("swiglu", 37, 24);
    test_gate("swiglu, primes", 13, 31);
    test_gate("swiglu, one value", 1, 1);
    test_geglu("geglu", 37, 24);
    test_geglu("geglu, primes", 13, 31);
    test_features();
    test_condition("condition, a label several times", 5, 9, 67);
    test_condition("condition, one label", 1, 3, 7);
    test_condition("condition, many labels, many columns", 101, 8, 131);
    test_condition_sum("condition_sum", 9, 67);
    test_condition_sum("condition_sum, one value", 1, 1);
    test_position_add("position_add, to_floatX", 3, 11, 13);
    test_position_add("position_add, to_floatX, one value", 1, 1, 1);
    test_patches("unpatchify, 4 channels, 2 by 2", 2, 3, 5, 4, 2);
    test_patches("unpatchify, 32 channels, one pixel", 2, 4, 4, 32, 1);
    test_patches("unpatchify, primes", 3, 1, 2, 5, 3);
    return test_finish();
}
