// The linear probe: PyTorch's Adam on a vector that is a formula, ranks and ties, batches, and an easy problem.

// defines: probe_open, probe_step, probe_epoch, probe_evaluate, probe_recent, probe_close, probe_rank, ...
#include "common/measures/probe.h"
// defines: random_buffer, check, check_error (this makes floatX double)
#include "tests/gradient.h"
// defines: vector_u, vector_g
#include "tests/vectors.h"
// defines: temporary_begin, check_message, temporary_end
#include "tests/temporary.h"

enum { ROWS = 40, DIM = 12, CLASSES = 5 };

typedef struct {
    double x[ROWS * DIM];
    int labels[ROWS];
} vector_set_t;

static void fill_vector(vector_set_t* v) {
    for (int i = 0; i < ROWS; i++) {
        double best = -INFINITY;
        for (int d = 0; d < DIM; d++) v->x[DIM * i + d] = vector_g(14, DIM * i + d);
        for (int k = 0; k < CLASSES; k++) {
            double score = 0.5 * vector_g(16, CLASSES * i + k);
            for (int d = 0; d < DIM; d++) score += v->x[DIM * i + d] * vector_g(15, CLASSES * d + k);
            if (score > best) v->labels[i] = k, best = score;
        }
    }
}

// 15 steps of torch.optim.Adam; weights after them, and the accuracy they give (spec V13).
static void test_adam(void) {
    if (!test_case("15 steps in order, as torch.optim.Adam")) return;
    static const int first_labels[10] = {3, 0, 4, 4, 4, 0, 3, 4, 2, 4};
    static const double bias[CLASSES] = {-0.00466060, -0.00147102, -0.00593287, 0.00375359, 0.00511693};
    static vector_set_t v;
    static probe_t p;
    probe_options_t o = {8, 1e-3, 1, NULL};
    double w[CLASSES * DIM], zero[CLASSES] = {0}, first = 0, last = 0, sum = 0, magnitude = 0, seen = 0;
    fill_vector(&v);
    check(!memcmp(v.labels, first_labels, sizeof first_labels), "labels of the vector");
    for (int i = 0; i < CLASSES * DIM; i++) w[i] = 0.05 * (2 * vector_u(17, i) - 1);
    probe_open(&p, DIM, CLASSES, &o);
    params_store(&p.params, p.weight, w, CLASSES * DIM);
    params_store(&p.params, p.bias, zero, CLASSES);
    for (int step = 0; step < 15; step++) {
        int at = step % 5 * 8;
        last = probe_step(&p, v.x + at * DIM, v.labels + at, 8, 0);
        if (step == 0) first = last;
        seen += last / 15;
    }
    check_error("first loss", fabs(first - 1.55589631894684), 1e-14);
    check_error("loss before step 15", fabs(last - 1.53534972039700), 1e-14);
    const double *after = params_at(&p.params, p.weight), *b = params_at(&p.params, p.bias);
    for (int i = 0; i < CLASSES * DIM; i++) sum += after[i], magnitude += fabs(after[i]);
    check_error("sum of W", fabs(sum - 0.101056058682008), 1e-14);
    check_error("sum of |W|", fabs(magnitude - 1.48620228699221), 1e-14);
    for (int k = 0; k < CLASSES; k++) check_error("b", fabs(b[k] - bias[k]), 5.1e-9); // given to 8 places
    probe_count_t recent = probe_recent(&p), count = {0, 0, 0, 0};
    check(recent.images == 120, "three epochs of 40 images seen");
    check_error("mean training loss", fabs(recent.loss / 120 - seen), 1e-14);
    for (int at = 0; at < ROWS; at += 8) probe_evaluate(&p, &count, v.x + at * DIM, v.labels + at, 8, 0);
    check(count.images == ROWS && count.top1 == 16, "accuracy 0.4");
    check(count.top5 == ROWS, "five classes: all in the top five");
    check(p.params.t == 15, "evaluation takes no step");
    probe_close(&p);
    test_end_case();
}

static void test_rank(void) {
    if (!test_case("rank of a label; ties go to the lower index")) return;
    const double logits[8] = {1, 3, 3, -2, 3, 0, 1, -2};
    const int ranks[8] = {3, 0, 1, 6, 2, 5, 4, 7};
    for (int k = 0; k < 8; k++) check(probe_rank(logits, 8, k) == ranks[k], "rank");
    test_end_case();
}

// With W = 0 every logit is the bias, so that counts are known.
static void test_counts(void) {
    if (!test_case("top-1 and top-5 of known logits")) return;
    static probe_t p;
    enum { C = 7 };
    const double bias[C] = {0, 2, 1, 1, -1, 5, -3}; // order: 5, 1, 2, 3, 0, 4, 6
    const int labels[9] = {5, 1, 2, 3, 0, 4, 6, 5, 0};
    double w[3 * C] = {0}, x[9 * 3], sum = 0, loss = 0;
    probe_options_t o = {9, 1e-3, 1, NULL};
    probe_count_t count = {0, 0, 0, 0};
    for (int i = 0; i < 27; i++) x[i] = test_normal();
    probe_open(&p, 3, C, &o);
    params_store(&p.params, p.weight, w, 3 * C);
    params_store(&p.params, p.bias, bias, C);
    probe_evaluate(&p, &count, x, labels, 9, 0);
    for (int k = 0; k < C; k++) sum += exp(bias[k]);
    for (int b = 0; b < 9; b++) loss += log(sum) - bias[labels[b]];
    check(count.images == 9 && count.top1 == 2 && count.top5 == 7, "2 of 9 first, 7 of 9 among five");
    check_error("loss", fabs(count.loss - loss), 1e-13);
    probe_close(&p);
    test_end_case();
}

// The report is over the last 1000 steps: the ring forgets those before.
static void test_recent(void) {
    if (!test_case("training loss of the last 1000 steps")) return;
    static vector_set_t v;
    static probe_t p;
    static double losses[1205];
    double sum = 0;
    int images = 0;
    probe_options_t o = {8, 1e-3, 1, NULL};
    fill_vector(&v);
    probe_open(&p, DIM, CLASSES, &o);
    for (int step = 0; step < 1205; step++) {
        int at = step % 6 * 7, n = step % 6 == 5 ? 5 : 7; // the last batch is partial
        losses[step] = probe_step(&p, v.x + at * DIM, v.labels + at, n, 0) * n;
        if (step >= 205) sum += losses[step], images += n;
    }
    probe_count_t recent = probe_recent(&p);
    check((int)recent.images == images, "images of 1000 steps");
    check_error("loss", fabs(recent.loss / sum - 1), 1e-13);
    probe_close(&p);
    test_end_case();
}

// A step on 7 images is the mean over 7, whatever the largest batch is.
static void test_partial(void) {
    if (!test_case("a batch smaller than the largest")) return;
    static vector_set_t v;
    static probe_t p, q;
    probe_options_t exact = {7, 1e-3, 1, NULL}, larger = {19, 1e-3, 1, NULL};
    fill_vector(&v);
    probe_open(&p, DIM, CLASSES, &exact);
    probe_open(&q, DIM, CLASSES, &larger);
    for (int i = 0; i < 5; i++) {
        double a = probe_step(&p, v.x + i * 7 * DIM, v.labels + i * 7, 7, 0);
        double b = probe_step(&q, v.x + i * 7 * DIM, v.labels + i * 7, 7, 0);
        check(a == b, "the same loss");
        double difference = relative_error_double(q.params.grads, p.params.grads, CLASSES * DIM);
        check_error("gradient", difference, 1e-15);
    }
    probe_close(&p);
    probe_close(&q);
    test_end_case();
}

// Taking mean and deviation out by the option is the same as doing it before.
static void test_norm(void) {
    if (!test_case("normalised features")) return;
    enum { CHANNELS = 4 };
    static vector_set_t v;
    static probe_t p, q;
    double mean[CHANNELS], deviation[CHANNELS], x[ROWS * DIM];
    fill_vector(&v);
    for (int i = 0; i < ROWS * DIM; i++) v.x[i] = i % CHANNELS == 3 ? 2.5 : v.x[i] * (1 + i % CHANNELS) + 3;
    for (int c = 0; c < CHANNELS; c++) mean[c] = 2 + c, deviation[c] = 1 + 0.3 * c;
    for (int i = 0; i < ROWS * DIM; i++) x[i] = (v.x[i] - mean[i % CHANNELS]) / deviation[i % CHANNELS];
    probe_norm_t norm = {CHANNELS, mean, deviation};
    probe_options_t with = {10, 1e-3, 1, &norm}, without = {10, 1e-3, 1, NULL};
    probe_open(&p, DIM, CLASSES, &with);
    probe_open(&q, DIM, CLASSES, &without);
    for (int at = 0; at < ROWS; at += 10) {
        double a = probe_step(&p, v.x + at * DIM, v.labels + at, 10, 0);
        double b = probe_step(&q, x + at * DIM, v.labels + at, 10, 0);
        check(a == b, "the same losses");
    }
    probe_close(&p);
    probe_close(&q);
    test_end_case();
}

// W and b start uniform in +-1/sqrt(D), and differ with the seed.
static void test_start(void) {
    if (!test_case("the start: uniform in +-1/sqrt(D)")) return;
    static probe_t p;
    double first[2];
    for (int seed = 0; seed < 2; seed++) {
        probe_options_t o = {1, 1e-3, (uint64_t)seed, NULL};
        double bound = 1 / sqrt(400.0), most = 0, squares = 0;
        probe_open(&p, 400, 50, &o);
        const double *w = params_at(&p.params, p.weight), *b = params_at(&p.params, p.bias);
        for (int i = 0; i < 20000; i++) most = fmax(most, fabs(w[i])), squares += w[i] * w[i] / 20000;
        for (int i = 0; i < 50; i++) check(fabs(b[i]) <= bound && b[i] != 0, "b in its bounds");
        check(most <= bound && most > 0.999 * bound, "W in its bounds");
        check(fabs(squares * 3 / (bound * bound) - 1) < 0.03, "variance of W");
        first[seed] = w[0];
        probe_close(&p);
    }
    check(first[0] != first[1], "another seed, another start");
    test_end_case();
}

typedef struct {
    int64_t steps;
    probe_count_t recent, held_out;
} result_t;

// Trains on `train` and tells how much of `held_out` is recognised.
static result_t train_and_ask(const probe_set_t* train, const probe_set_t* held_out, int epochs, const probe_options_t* o) {
    static probe_t p;
    result_t r;
    memset(&r, 0, sizeof r);
    probe_open(&p, train->dim, train->classes, o);
    for (int epoch = 0; epoch < epochs; epoch++) probe_epoch(&p, train, epoch, 0);
    r.steps = p.params.t;
    r.recent = probe_recent(&p);
    for (int first = 0, n; first < held_out->n; first += n) {
        n = held_out->n - first < o->batch ? held_out->n - first : o->batch;
        probe_evaluate(&p, &r.held_out, held_out->features + (size_t)first * p.dim, held_out->labels + first, n, 0);
    }
    probe_close(&p);
    return r;
}

// The share of a count.
static double share(uint64_t part, const probe_count_t* of) { return (double)part / (double)of->images; }

// A class that is a direction in space is found; labels by lot are not. Odd sizes, a partial last batch.
static void test_run(void) {
    if (!test_case("two sets in memory: separable classes, and labels by lot")) return;
    enum { N = 1203, D = 17, K = 10 };
    double *x = random_buffer(2 * N * D), *centre = random_buffer(K * D);
    int labels[2 * N];
    for (int i = 0; i < 2 * N; i++) {
        labels[i] = i * 7 % K;
        for (int d = 0; d < D; d++) x[i * D + d] = 0.3 * x[i * D + d] + centre[labels[i] * D + d];
    }
    probe_set_t train = {N, D, K, x, labels}, held_out = {N, D, K, x + N * D, labels + N};
    probe_options_t o = {64, 1e-2, 3, NULL};
    result_t r = train_and_ask(&train, &held_out, 12, &o), again = train_and_ask(&train, &held_out, 12, &o);
    check(r.steps == 12 * 19, "19 batches an epoch, the last one of 51");
    check(share(r.held_out.top1, &r.held_out) > 0.98 && share(r.held_out.top5, &r.held_out) > 0.999, "found");
    check(r.held_out.top5 <= r.held_out.images, "each image is counted once");
    check(r.recent.loss < r.recent.images && share(r.recent.top1, &r.recent) > 0.8, "learned");
    check(!memcmp(&r, &again, sizeof r), "a run is repeatable");
    o.seed = 4;
    again = train_and_ask(&train, &held_out, 12, &o);
    check(again.held_out.loss != r.held_out.loss, "another seed, another run");
    for (int i = 0; i < 2 * N; i++) labels[i] = (int)((test_uniform() + 1) / 2 * K);
    r = train_and_ask(&train, &held_out, 12, &o);
    double top5 = share(r.held_out.top5, &r.held_out);
    check(share(r.held_out.top1, &r.held_out) < 0.2 && top5 > 0.4 && top5 < 0.6, "chance: 0.1 and 0.5");
    free(x);
    free(centre);
    test_end_case();
}

static void ask_for(const char* what) {
    static probe_t p;
    double x[8] = {NAN}, mean[2] = {0}, deviation[2] = {1, 1};
    int labels[2] = {0, strcmp(what, "label") ? 1 : 3};
    probe_norm_t norm = {2, mean, deviation};
    probe_options_t o = {2, 1e-3, 1, strcmp(what, "channels") ? NULL : &norm};
    if (!strcmp(what, "label")) x[0] = 0;
    probe_open(&p, strcmp(what, "channels") ? 4 : 3, 3, &o);
    probe_step(&p, x, labels, strcmp(what, "batch") ? 2 : 3, 0);
}

static void test_refusals(void) {
    if (!test_case("refused: foreign labels, channels that do not divide, batches too large, NaN")) return;
    static const char* const what[4] = {"label", "channels", "batch", "NaN"};
    static const char* const said[4] = {"label 3 of a probe of 3 classes", "not a multiple", "batch of 3 images",
                                        "not finite at step 0"};
    for (int i = 0; i < 4; i++) check_message(ask_for, what[i], said[i], NULL);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_adam();
    test_rank();
    test_counts();
    test_recent();
    test_partial();
    test_norm();
    test_start();
    test_run();
    test_refusals();
    temporary_end();
    return test_finish();
}
