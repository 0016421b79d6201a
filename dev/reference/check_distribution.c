// check_distribution.c: the distribution metrics of a file of features, for a comparison with the Python programs.
//
//     build/cpu/check_distribution FEATURES.safetensors      float32: real (N, D), generated (M, D), logits (M, C)
//
// Prints one JSON object: each metric, and the seconds that it took. check_distribution.py makes the files, calls this,
// and compares. Not part of `make test`: at 2048 dimensions it takes some minutes, and Python.

// defines: clock_seconds
#include "common/program/clock.h"
// defines: frechet_distance, moments_*
#include "common/measures/frechet.h"
// defines: kid_distance, manifold_precision_recall, inception_score_*
#include "common/measures/sample_measures.h"
// defines: safetensors_*
#include "common/files/safetensors.h"

static feature_set_t read_features(const safetensors_t* file, const char* name) {
    const st_tensor_t* t = safetensors_find(file, name);
    if (!t || t->ndim != 2)
        fatal("%s: there is no matrix %s; make the file with check_distribution.py", file->path, name);
    float* rows = (float*)malloc_check(t->numel * sizeof(float), name);
    safetensors_read(t, rows);
    feature_set_t set = {rows, (int)t->shape[0], (int)t->shape[1]};
    return set;
}

// Prints "name seconds" of the time since the last call, or since the start.
static void report_seconds(const char* name) {
    static double last;
    double t = clock_seconds();
    if (name) printf("\"%s\": %.2f, ", name, t - last);
    last = t;
}

static void moments_of(feature_set_t f, double* mean, double* covariance) {
    moments_t m;
    moments_open(&m, f.dim);
    moments_add(&m, f.rows, f.n);
    moments_read(&m, mean, covariance);
    moments_free(&m);
}

int main(int argc, char** argv) {
    if (argc != 2) fatal("usage: check_distribution FEATURES (see check_distribution.py)");
    safetensors_t file;
    safetensors_open_or_die(&file, argv[1]);
    feature_set_t real = read_features(&file, "real"), generated = read_features(&file, "generated");
    feature_set_t logits = read_features(&file, "logits");
    int dim = real.dim, least = real.n < generated.n ? real.n : generated.n;
    if (generated.dim != dim) fatal("%s: real and generated features differ in their dimensions", argv[1]);
    double *mean1 = matrix_doubles(dim, "mean"), *covariance1 = matrix_doubles((size_t)dim * dim, "covariance");
    double *mean2 = matrix_doubles(dim, "mean"), *covariance2 = matrix_doubles((size_t)dim * dim, "covariance");
    report_seconds(NULL);
    printf("{");
    moments_of(real, mean1, covariance1);
    moments_of(generated, mean2, covariance2);
    report_seconds("seconds_moments");
    printf("\"fid\": %.17g, ", frechet_distance(dim, mean1, covariance1, mean2, covariance2));
    report_seconds("seconds_fid");
    feature_set_t first_real = {real.rows, least, dim}, first_generated = {generated.rows, least, dim};
    kid_t all = kid_distance(first_real, first_generated, 1, least, KID_SEED, NULL);
    report_seconds(NULL);
    kid_t kid = kid_distance(real, generated, KID_SUBSETS, KID_SIZE, KID_SEED, NULL);
    printf("\"kid_first_rows\": %.17g, \"kid\": %.17g, \"kid_deviation\": %.17g, ", all.mean, kid.mean, kid.deviation);
    report_seconds("seconds_kid");
    inception_score_t score;
    inception_score_open(&score, logits.n, (logits.n + 9) / 10, logits.dim);
    inception_score_add(&score, 0, logits.rows, logits.n);
    inception_score_result_t is = inception_score_read(&score, (size_t)logits.n);
    printf("\"is\": %.17g, \"is_deviation\": %.17g, \"is_whole\": %.17g, ", is.mean, is.deviation, is.whole);
    report_seconds("seconds_is");
    for (int half = 0; half < 2; half++) {
        const char* end = half ? "_half" : "";
        manifold_t m = manifold_precision_recall(real, generated, MANIFOLD_K, half, NULL);
        printf("\"precision%s\": %.17g, \"recall%s\": %.17g, ", end, m.precision, end, m.recall);
        report_seconds(half ? "seconds_manifold_half" : "seconds_manifold");
    }
    printf("\"dim\": %d}\n", dim);
    return 0;
}
