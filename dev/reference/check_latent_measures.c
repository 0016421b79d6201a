// check_latent_measures.c: the latent-space measures of files of numbers, to compare with other programs'.
//
//     build/cpu/check_latent_measures density N D FILE MAP              t-SNE of N points of D floats, and its density
//     build/cpu/check_latent_measures cknna N DA FILE_A DB FILE_B K CLIP
//
// A FILE holds N rows of D little-endian floats and nothing else; MAP is written, N rows of 2 doubles. The last line is a
// JSON object.
// See check_latent_measures.py, which makes such files and runs this. Not part of `make test`.
// defines: cknna_measure
#include "common/measures/neighbours.h"
// defines: clock_seconds
#include "common/program/clock.h"
// defines: tsne_map
#include "common/measures/tsne.h"

static floatS* read_rows(const char* path, int n, int d) {
    size_t count = (size_t)n * d;
    float* values = (float*)malloc_check(count * sizeof(float), "a file");
    floatS* x = (floatS*)malloc_check(count * sizeof(floatS), "rows");
    FILE* file = fopen(path, "rb");
    if (!file) fatal("%s cannot be opened", path);
    if (fread(values, sizeof(float), count, file) != count || fgetc(file) != EOF)
        fatal("%s does not hold %d rows of %d floats", path, n, d);
    fclose(file);
    for (size_t i = 0; i < count; i++) x[i] = values[i];
    free(values);
    return x;
}

static void progress(void* context, int iteration, int iterations, double seconds_left) {
    (void)context;
    fprintf(stderr, "\riteration %d of %d, %.0f s left   %s", iteration, iterations, seconds_left,
            iteration == iterations ? "\n" : "");
}

static void density(int n, int d, const char* path, const char* map_path) {
    floatS* x = read_rows(path, n, d);
    double* map = (double*)malloc_check((size_t)n * 2 * sizeof(double), "a map");
    double* p = (double*)malloc_check((size_t)n * sizeof(double), "densities");
    tsne_options_t options = {TSNE_ITERATIONS, progress, NULL};
    double start = clock_seconds();
    double divergence = tsne_map(map, x, n, d, TSNE_PERPLEXITY, &options);
    double seconds = clock_seconds() - start;
    density_estimate(p, map, n);
    density_t m = density_measure(p, n);
    printf("{\"cv\": %.6f, \"gini\": %.6f, \"entropy\": %.7f, \"kl\": %.6f, \"tsne_s\": %.1f, \"kde_s\": %.1f}\n", m.cv,
           m.gini, m.entropy, divergence, seconds, clock_seconds() - start - seconds);
    FILE* file = fopen(map_path, "wb");
    if (!file || fwrite(map, 2 * sizeof(double), (size_t)n, file) != (size_t)n || fclose(file))
        fatal("%s cannot be written", map_path);
    free(p);
    free(map);
    free(x);
}

static void cknna(int n, int da, const char* path_a, int db, const char* path_b, int k, double clip) {
    floatS *a = read_rows(path_a, n, da), *b = read_rows(path_b, n, db);
    double start = clock_seconds();
    cknna_t m = cknna_measure(a, da, b, db, n, k, clip);
    printf("{\"cknna\": %.12f, \"plain\": %.12f, \"kl\": %.12g, \"kk\": %.12g, \"ll\": %.12g, \"s\": %.1f}\n", m.value,
           m.plain, m.kl, m.kk, m.ll, clock_seconds() - start);
    free(a);
    free(b);
}

int main(int argc, char** argv) {
    if (argc == 6 && !strcmp(argv[1], "density"))
        density(atoi(argv[2]), atoi(argv[3]), argv[4], argv[5]);
    else if (argc == 9 && !strcmp(argv[1], "cknna"))
        cknna(atoi(argv[2]), atoi(argv[3]), argv[4], atoi(argv[5]), argv[6], atoi(argv[7]), atof(argv[8]));
    else
        fatal("usage: density N D FILE MAP | cknna N DA FILE_A DB FILE_B K CLIP (see the source)");
    return 0;
}
