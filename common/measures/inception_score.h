// inception_score.h: the inception score (Salimans et al. 2016), from the logits of generated images.
//
//     p = softmax(logits),  pbar = mean_i p_i,  IS of a block of images = exp(mean_i sum_c p_ic log(p_ic / pbar_c))
//
// It is the exponential of how much an image tells about its class: 1 if all images look alike to the classifier, the
// number of classes if each is of one class for certain and all classes are as frequent.
//
// Convention of ADM's evaluator: images in stored order are cut into blocks of 5,000, the last may be shorter, and IS
// is the mean over blocks. The logits have no bias. A block must hold classes as they come: where images are stored
// class by class the score collapses, and inception_score_check_order refuses that. The value of the whole set as one
// block is given too; it is larger, since a block's own pbar fits it too well.
//
// Since sum_i p_ic (log p_ic - log pbar_c) = sum_i p_ic log p_ic - n pbar_c log pbar_c, a block needs the sums of
// p log p and of p alone. They are kept in double for each block: rows may come in any order, from any rank.
// Look next at common/measures/moments.h.
#pragma once
// defines: comm_t, comm_sum_host, fatal, calloc_check
#include "common/training/comm.h"

#define INCEPTION_SCORE_BLOCK 5000

typedef struct {
    int classes, block, blocks;
    size_t n;     // images in all
    double* sums; // (blocks, classes + 2): sums of p_c; then that of p log p; then the number of images
} inception_score_t;

typedef struct { double mean, deviation, whole; } inception_score_result_t; // over blocks (population); one block

static inline void inception_score_open(inception_score_t* s, size_t n, int block, int classes) {
    if (n < 1 || block < 1 || classes < 2 || n / block >= 1u << 20)
        fatal("an inception score of %zu images of %d classes in blocks of %d cannot be computed", n, classes, block);
    s->classes = classes;
    s->block = block;
    s->blocks = (int)((n + block - 1) / block);
    s->n = n;
    s->sums = (double*)calloc_check((size_t)s->blocks * (classes + 2), sizeof(double), "class probabilities");
}

static inline void inception_score_free(inception_score_t* s) { free(s->sums); }

static inline double* inception_score_sums(const inception_score_t* s, int block) { // (classes + 2)
    return s->sums + (size_t)block * (s->classes + 2);
}

// One image: its number in the stored order, and its logits, which are lost.
static inline void inception_score_add_row(inception_score_t* s, size_t image, double* logits) { // (classes)
    int classes = s->classes;
    if (image >= s->n) fatal("image %zu for an inception score of %zu images", image, s->n);
    double *sums = inception_score_sums(s, (int)(image / s->block)), largest = logits[0], total = 0, p_log_p = 0;
    for (int c = 0; c < classes; c++) {
        if (!isfinite(logits[c]))
            fatal("logit %d of image %zu is %g; the network's weights are not finite", c, image, logits[c]);
        largest = fmax(largest, logits[c]);
    }
    for (int c = 0; c < classes; c++) total += exp(logits[c] - largest);
    double log_total = largest + log(total);
    for (int c = 0; c < classes; c++) {
        double log_p = logits[c] - log_total, p = exp(log_p);
        sums[c] += p;
        p_log_p += p * log_p;
    }
    sums[classes] += p_log_p;
    sums[classes + 1]++;
}

static inline void inception_score_add(inception_score_t* s, size_t first,
                                       const float* logits, // (N, classes) of images first, first + 1, ...
                                       int N) {
    double* row = (double*)malloc_check((size_t)s->classes * sizeof(double), "an image's logits");
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < s->classes; c++) row[c] = logits[(size_t)i * s->classes + c];
        inception_score_add_row(s, first + i, row);
    }
    free(row);
}

// Every rank has added its images; afterwards all have all. A collective.
static inline void inception_score_merge(inception_score_t* s, comm_t* c) {
    for (int b = 0; b < s->blocks; b++) comm_sum_host(c, inception_score_sums(s, b), s->classes + 2);
}

static inline double inception_score_of(const double* sums, int classes) { // (classes + 2)
    double n = sums[classes + 1], information = sums[classes] / n;
    for (int c = 0; c < classes; c++) {
        double p = sums[c] / n;
        if (p > 0) information -= p * log(p);
    }
    return exp(information);
}

static inline inception_score_result_t inception_score_read(const inception_score_t* s) {
    inception_score_result_t result = {0, 0, 0};
    double* all = (double*)calloc_check((size_t)s->classes + 2, sizeof(double), "class probabilities");
    double variance = 0;
    for (int b = 0; b < s->blocks; b++) {
        const double* sums = inception_score_sums(s, b);
        size_t expected = b < s->blocks - 1 ? (size_t)s->block : s->n - (size_t)b * s->block;
        if (sums[s->classes + 1] != (double)expected)
            fatal("block %d of the inception score has %.0f images in place of %zu", b, sums[s->classes + 1], expected);
        for (int c = 0; c < s->classes + 2; c++) all[c] += sums[c];
        result.mean += inception_score_of(sums, s->classes) / s->blocks;
    }
    for (int b = 0; b < s->blocks; b++) {
        double difference = inception_score_of(inception_score_sums(s, b), s->classes) - result.mean;
        variance += difference * difference / s->blocks;
    }
    result.deviation = sqrt(variance);
    result.whole = inception_score_of(all, s->classes);
    free(all);
    return result;
}

// Refuses images that are stored class by class, where they fall into several blocks.
static inline void inception_score_check_order(const int* labels, size_t n, int block) { // (n)
    size_t runs = n > 0, different = 0;
    int most = 0;
    for (size_t i = 0; i < n; i++) {
        if (labels[i] < 0) fatal("label %zu is %d", i, labels[i]);
        most = labels[i] > most ? labels[i] : most;
        runs += i > 0 && labels[i] != labels[i - 1];
    }
    char* seen = (char*)calloc_check((size_t)most + 1, 1, "classes");
    for (size_t i = 0; i < n; i++) different += !seen[labels[i]], seen[labels[i]] = 1;
    free(seen);
    if (n > (size_t)block && different > 1 && runs == different && n > different)
        fatal("the images are stored class by class: the inception score of blocks of %d would collapse. Store them in "
              "random order of class, or leave the inception score out", block);
}
