// latent_measures.h: all of AlignTok's Table 16 for one representation of a set of images: CKNNA with the encoder's
// tokens, spatial variance, total variation, and the evenness (density) of its vectors on a t-SNE map.
//
//     latent_measures_t m;
//     latent_measures_open(&m, images, GH, GW, z, D, draws, flips, seed);
//     for each image i of the set, in any order, each once:
//         latent_measures_add(&m, i, latent, flipped, tokens, rows);
//     latent_measures_combine(&m, &comm);             several processes: each has added its own images
//     latent_scores_t scores;
//     latent_measures_finish(&scores, &m, CKNNA_NEIGHBOURS, 0, progress, context);
//     latent_measures_close(&m);
//
// The reference's own row of the table (DINOv2) is the same with its tokens as latent: z = D, latent = tokens.
//
// Latents are raw, as the encoder gives them. What is kept of an image: spatial means of the latent and of the tokens,
// the latent's variances by channel, SV, TV, TV_sq, and for each draw the vector at one position: 20 MB for 10,000
// images of z = 32, D = 1024, and 240 MB for z = 1024. No map is kept.
//
// Density, for each draw: one vector an image, at a random position of the latent of the image or, each as likely, of
// its mirror image; normalised by channel with mean and (unbiased) deviation of the latents of the whole set; t-SNE;
// density. Position and mirroring depend on (seed, draw, i) alone, and everything is summed in the order of the images,
// so a score does not depend on batches, processes or threads, to the last bit (t-SNE would make a digit of less).
// An image that could not be read is left out by never adding it.
//
// Roughness: three numbers of one image's (H, W, C) map; a set's are their means.
//
//   SV     spatial variance: mean over channels of the (population) variance over the H W positions
//   TV     total variation: mean over channels of  sum |z(y+1, x) - z(y, x)| + sum |z(y, x+1) - z(y, x)|
//   TV_sq  the same with squares
//
// AlignTok's Table 16 gives the first two without formulas. Sums over positions and means over channels are what its
// magnitudes fit (11.41 and 957.6 for a VAE, 2.141 and 487.9 for the 1024 channels of DINOv2, 16 x 16 positions); the
// text fits |.| or squares, so both are computed. Latents are raw: a normalised one has a variance near 1.
// Look next at common/measures/neighbours.h for CKNNA and common/measures/tsne.h for the map and its density.
#pragma once
#include <assert.h>

// defines: comm_t, comm_sum_host, comm_sum_floats_host
#include "common/training/comm.h"
// defines: cknna_t, cknna_measure
#include "common/measures/neighbours.h"
// defines: philox, below_from_bits, RANDOM_POSITIONS
#include "common/program/rng.h"
// defines: tsne_map, tsne_options_t, TSNE_PERPLEXITY, density_t, density_estimate, density_measure
#include "common/measures/tsne.h"

typedef struct {
    double sv, tv, tv_sq;
} roughness_t;

static inline roughness_t roughness(const floatS* z, int H, int W, int C) { // (H, W, C)
    roughness_t out = {0, 0, 0};
    double positions = (double)H * W;
    for (int c = 0; c < C; c++) {
        double mean = 0, variance = 0;
        for (int p = 0; p < H * W; p++) mean += (double)z[(size_t)p * C + c];
        mean /= positions;
        for (int y = 0; y < H; y++) {
            for (int x = 0; x < W; x++) {
                const floatS* at = z + ((size_t)y * W + x) * C + c;
                double v = (double)*at;
                double down = y + 1 < H ? (double)at[(size_t)W * C] - v : 0, right = x + 1 < W ? (double)at[C] - v : 0;
                variance += (v - mean) * (v - mean);
                out.tv += fabs(down) + fabs(right);
                out.tv_sq += down * down + right * right;
            }
        }
        out.sv += variance / positions;
    }
    out.sv /= C;
    out.tv /= C;
    out.tv_sq /= C;
    return out;
}

typedef struct {
    int images, GH, GW, z, D; // D = 0: no tokens, no CKNNA
    int draws, flips;         // flips = 0: mirror images are never looked at
    uint64_t seed;
    uint8_t* added;    // (images)
    floatS* mean;      // (images, z) over positions
    floatS* variance;  // (images, z) over positions, population
    floatS* tokens;    // (images, D) mean over the encoder's tokens
    floatS* drawn;     // (draws, images, z)
    double* roughness; // (images, 3) SV, TV, TV_sq
} latent_measures_t;

typedef struct {
    int n;                     // images
    cknna_t cknna;             // of means over positions; cknna.value is the table's
    int k;                     // its neighbours; 0: not measured
    roughness_t roughness;
    density_t density, spread; // mean and (unbiased) deviation over the draws
    double divergence;         // KL of the t-SNE maps, mean
    double perplexity;         // TSNE_PERPLEXITY, or less for fewer than 91 images
    int draws;
} latent_scores_t;

// Called at times by finish, where the maps take most of the time; seconds_left of this draw's map. May be NULL.
typedef void (*latent_progress_t)(void* context, int draw, int draws, int iteration, int iterations,
                                  double seconds_left);

static inline void latent_measures_open(latent_measures_t* m, int images, int GH, int GW, int z, int D, int draws,
                                        int flips, uint64_t seed) {
    if (images < 4) fatal("latent measures of %d images: at least 4 are needed", images);
    memset(m, 0, sizeof *m);
    m->images = images;
    m->GH = GH;
    m->GW = GW;
    m->z = z;
    m->D = D;
    m->draws = draws;
    m->flips = flips;
    m->seed = seed;
    size_t n = (size_t)images;
    m->added = (uint8_t*)calloc_check(n, 1, "images that were added");
    m->mean = (floatS*)calloc_check(n * z, sizeof(floatS), "means of latents");
    m->variance = (floatS*)calloc_check(n * z, sizeof(floatS), "variances of latents");
    m->tokens = (floatS*)calloc_check(n * D, sizeof(floatS), "means of tokens");
    m->drawn = (floatS*)calloc_check(n * z * draws, sizeof(floatS), "vectors of latents");
    m->roughness = (double*)calloc_check(n * 3, sizeof(double), "roughness of latents");
}

static inline void latent_measures_close(latent_measures_t* m) {
    free(m->added);
    free(m->mean);
    free(m->variance);
    free(m->tokens);
    free(m->drawn);
    free(m->roughness);
    memset(m, 0, sizeof *m);
}

// Where draw `draw` looks at image `index`: returns the position, and whether it is one of the mirror image.
static inline int latent_measures_position(const latent_measures_t* m, int index, int draw, int* mirrored) {
    philox4_t bits = philox(m->seed, RANDOM_POSITIONS, (uint64_t)draw, (uint64_t)index);
    *mirrored = m->flips && bits.v[2] >> 31;
    return (int)below_from_bits(bits.v[0], bits.v[1], (uint32_t)(m->GH * m->GW));
}

static inline void latent_measures_add(latent_measures_t* m, int index,
                                       const floatS* latent,  // (GH, GW, z)
                                       const floatS* flipped, // (GH, GW, z) of the mirror image, where it is needed
                                       const floatS* tokens,  // (rows, D); not read if D = 0
                                       int rows) {
    int positions = m->GH * m->GW, z = m->z;
    size_t bad = first_not_finite(latent, (size_t)positions * z);
    if (bad < (size_t)positions * z) fatal("latent of image %d: a value of channel %zu is not finite", index, bad % z);
    if (index < 0 || index >= m->images || m->added[index]) fatal("latent of image %d: not asked for, or twice", index);
    m->added[index] = 1;
    for (int c = 0; c < z; c++) {
        double mean = 0, variance = 0;
        for (int p = 0; p < positions; p++) mean += (double)latent[(size_t)p * z + c];
        mean /= positions;
        for (int p = 0; p < positions; p++) {
            double v = (double)latent[(size_t)p * z + c] - mean;
            variance += v * v;
        }
        m->mean[(size_t)index * z + c] = (floatS)mean;
        m->variance[(size_t)index * z + c] = (floatS)(variance / positions);
    }
    for (int c = 0; c < m->D; c++) {
        double sum = 0;
        for (int r = 0; r < rows; r++) sum += (double)tokens[(size_t)r * m->D + c];
        m->tokens[(size_t)index * m->D + c] = (floatS)(sum / rows);
    }
    roughness_t s = roughness(latent, m->GH, m->GW, z);
    double* to = m->roughness + 3 * (size_t)index;
    to[0] = s.sv;
    to[1] = s.tv;
    to[2] = s.tv_sq;
    for (int draw = 0; draw < m->draws; draw++) {
        int mirrored, at = latent_measures_position(m, index, draw, &mirrored);
        assert(!mirrored || flipped);
        const floatS* from = (mirrored ? flipped : latent) + (size_t)at * z;
        memcpy(m->drawn + ((size_t)draw * m->images + index) * z, from, (size_t)z * sizeof(floatS));
    }
}

// All processes get the values of all images.
static inline void latent_measures_combine(latent_measures_t* m, comm_t* comm) {
    size_t n = (size_t)m->images;
    if (comm->size == 1) return;
    double* added = (double*)malloc_check(n * sizeof(double), "images that were added");
    for (size_t i = 0; i < n; i++) added[i] = m->added[i];
    comm_sum_host(comm, added, m->images);
    for (size_t i = 0; i < n; i++) m->added[i] = added[i] > 0;
    free(added);
    comm_sum_floats_host(comm, m->mean, n * m->z);
    comm_sum_floats_host(comm, m->variance, n * m->z);
    comm_sum_floats_host(comm, m->tokens, n * m->D);
    comm_sum_floats_host(comm, m->drawn, n * m->z * m->draws);
    for (size_t c = 0; c < 3; c++) comm_sum_host(comm, m->roughness + c * n, m->images);
}

// Rows of the images that were added, one behind the other.
static inline void latent_measures_compact(const latent_measures_t* m, floatS* rows, int width) { // (images, width)
    size_t to = 0;
    for (size_t i = 0; i < (size_t)m->images; i++) {
        if (m->added[i]) memmove(rows + to++ * width, rows + i * width, (size_t)width * sizeof(floatS));
    }
}

// Mean and 1 / deviation of each channel over all positions of all images; 0 for a channel that does not vary.
static inline void latent_measures_scale(double* mean, double* scale, const latent_measures_t* m, int n) { // (z)
    double positions = (double)m->GH * m->GW;
    for (int c = 0; c < m->z; c++) {
        double sum = 0, squares = 0;
        for (size_t i = 0; i < (size_t)n; i++) sum += (double)m->mean[i * m->z + c];
        mean[c] = sum / n;
        for (size_t i = 0; i < (size_t)n; i++) {
            double difference = (double)m->mean[i * m->z + c] - mean[c];
            squares += positions * ((double)m->variance[i * m->z + c] + difference * difference);
        }
        scale[c] = squares > 0 ? 1 / sqrt(squares / (n * positions - 1)) : 0;
    }
}

typedef struct {
    latent_progress_t call;
    void* context;
    int draw, draws;
} latent_forward_t;

static inline void latent_measures_progress(void* context, int iteration, int iterations, double seconds_left) {
    const latent_forward_t* f = (const latent_forward_t*)context;
    f->call(f->context, f->draw, f->draws, iteration, iterations, seconds_left);
}

// Evenness of one draw's vectors on a t-SNE map. Equal vectors have an even density.
static inline density_t latent_measures_density(double* divergence, const latent_measures_t* m, int draw, int n,
                                                double perplexity, const tsne_options_t* o) {
    density_t even = {0, 0, 1};
    int z = m->z, varies = 0;
    double *mean = matrix_doubles((size_t)z, "means"), *scale = matrix_doubles((size_t)z, "deviations");
    floatS* data = (floatS*)malloc_check((size_t)n * z * sizeof(floatS), "normalised vectors");
    const floatS* drawn = m->drawn + (size_t)draw * m->images * z;
    latent_measures_scale(mean, scale, m, n);
    for (size_t v = 0; v < (size_t)n * z; v++) {
        data[v] = (floatS)(((double)drawn[v] - mean[v % z]) * scale[v % z]);
        varies |= data[v] != data[v % z];
    }
    *divergence = 0;
    if (varies) {
        double *map = matrix_doubles((size_t)n * 2, "a map"), *p = matrix_doubles((size_t)n, "densities");
        *divergence = tsne_map(map, data, n, z, perplexity, o);
        density_estimate(p, map, n);
        even = density_measure(p, n);
        free(p);
        free(map);
    }
    free(data);
    free(scale);
    free(mean);
    return even;
}

// Mean and deviation of `count` values.
static inline void latent_measures_spread(double* mean, double* spread, const double* values, int count) {
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) sum += values[3 * i];
    *mean = sum / count;
    for (int i = 0; i < count; i++) squares += (values[3 * i] - *mean) * (values[3 * i] - *mean);
    *spread = count > 1 ? sqrt(squares / (count - 1)) : 0;
}

// `clip`: see cknna_measure. k is made smaller than the number of images. May be called once.
static inline void latent_measures_finish(latent_scores_t* out, latent_measures_t* m, int k, double clip,
                                          latent_progress_t progress, void* context) {
    memset(out, 0, sizeof *out);
    for (int i = 0; i < m->images; i++) {
        if (!m->added[i]) continue;
        out->roughness.sv += m->roughness[3 * (size_t)i];
        out->roughness.tv += m->roughness[3 * (size_t)i + 1];
        out->roughness.tv_sq += m->roughness[3 * (size_t)i + 2];
        out->n++;
    }
    int n = out->n;
    if (n < 4) fatal("latent measures: of %d images %d could be read; at least 4 are needed", m->images, n);
    out->roughness.sv /= n;
    out->roughness.tv /= n;
    out->roughness.tv_sq /= n;
    latent_measures_compact(m, m->mean, m->z);
    latent_measures_compact(m, m->variance, m->z);
    latent_measures_compact(m, m->tokens, m->D);
    for (int draw = 0; draw < m->draws; draw++) {
        latent_measures_compact(m, m->drawn + (size_t)draw * m->images * m->z, m->z);
    }
    if (m->D) {
        out->k = k < n ? k : n - 1;
        out->cknna = cknna_measure(m->mean, m->z, m->tokens, m->D, n, out->k, clip);
    }
    out->perplexity = n > 3 * TSNE_PERPLEXITY ? TSNE_PERPLEXITY : (n - 1) / 3.0;
    out->draws = m->draws;
    double* values = matrix_doubles((size_t)m->draws * 3, "densities of draws");
    for (int draw = 0; draw < m->draws; draw++) {
        latent_forward_t forward = {progress, context, draw, m->draws};
        tsne_options_t options = {TSNE_ITERATIONS, progress ? latent_measures_progress : NULL, &forward};
        double divergence;
        density_t d = latent_measures_density(&divergence, m, draw, n, out->perplexity, &options);
        values[3 * draw] = d.cv;
        values[3 * draw + 1] = d.gini;
        values[3 * draw + 2] = d.entropy;
        out->divergence += divergence / m->draws;
    }
    if (m->draws) {
        latent_measures_spread(&out->density.cv, &out->spread.cv, values, m->draws);
        latent_measures_spread(&out->density.gini, &out->spread.gini, values + 1, m->draws);
        latent_measures_spread(&out->density.entropy, &out->spread.entropy, values + 2, m->draws);
    }
    free(values);
}
