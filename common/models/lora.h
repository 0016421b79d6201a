// lora.h: low-rank adaptation of linear layers (Hu et al. 2022). A layer's own weights stay as they are; what it learns
// stands beside it as the product of two thin matrices:
//
//   y = x W^T + b + s dropout(x) A^T B^T        A (r, C), B (OC, r), s = alpha / r
//
// A starts as PyTorch starts a linear layer, B at zero: training starts at the function that is there. With m the mask
// of dropout, xd = s m x (the scale goes in with the mask) and z = xd A^T:
//
//   y  += z B^T
//   dB += dy^T z;   dz = dy B;   dA += dz^T xd;   dx += s m (dz A)
//
// Neither xd nor z is kept: the backward makes them again from x, which the layer keeps anyhow. A mask is a function of
// (seed, step, pair, number of the image in the whole batch, place): the same in a forward that is run again, for any
// number of processes, and in a run that was resumed.
//
// Where nothing is trained there are no pairs: they are merged into W, W' = W + s B A, when a file is read
// (common/training/tokenizer_checkpoint.h). Names are those of PEFT (huggingface/peft, lora/layer.py), as in the files
// that it saves: PREFIX.lora_A.weight beside PREFIX.weight.
//
// Look next at common/models/vit.h, whose linear layers have such pairs.
#pragma once
// defines: params_t, param_table_t, param_matrix, params_at, params_grad, init_*
#include "common/models/params.h"
// defines: plan_t, plan_floatX
#include "common/models/plan.h"
// defines: dropout_*, matmul_forward, matmul_add_forward, matmul_backward
#include "common/ops.h"

typedef struct {
    int rank; // 0: none
    double alpha, dropout;
} lora_config_t;

// The pair of one linear layer.
typedef struct {
    size_t a, b; // offsets
    int C, OC;
    int index;   // of the pair in its model
} lora_pair_t;

typedef struct {
    lora_config_t config;
    int pairs;            // registered so far
    int widest;           // the largest C
    size_t macs;          // multiply-accumulates a token of a training step
    int drops;            // dropout acts: while training, and then with the masks of
    uint64_t seed, step;
    uint64_t first_image; // number of the pass's first image in the whole batch
    floatX* x;            // (B, T, widest) xd, then its gradient
    floatX* z;            // (B, T, r)
    floatX* dz;           // (B, T, r)
} lora_t;

// Registers the pair of a linear layer (OC, C) whose name is `prefix` + `layer`.
lora_pair_t lora_register(lora_t* l, param_table_t* table, const char* prefix, const char* layer, int C, int OC) {
    char name[PARAM_NAME];
    lora_pair_t pair = {0, 0, C, OC, l->pairs++};
    param_name(name, prefix, layer);
    pair.a = param_matrix(table, name, ".lora_A.weight", l->config.rank, C, init_fan_in(C));
    pair.b = param_matrix(table, name, ".lora_B.weight", OC, l->config.rank, init_constant(0));
    if (C > l->widest) l->widest = C;
    l->macs += (size_t)l->config.rank * (4 * C + 3 * OC); // forward, z again, and both gradients
    return pair;
}

void lora_plan_work(lora_t* l, plan_t* work, size_t rows) {
    if (!l->config.rank) return;
    plan_floatX(work, &l->x, rows * l->widest, "lora.x");
    plan_floatX(work, &l->z, rows * l->config.rank, "lora.z");
    plan_floatX(work, &l->dz, rows * l->config.rank, "lora.dz");
}

// Dropout acts from here on, with the masks of a step, until lora_rest.
static inline void lora_draw(lora_t* l, uint64_t seed, uint64_t step, uint64_t first_image) {
    l->drops = 1;
    l->seed = seed;
    l->step = step;
    l->first_image = first_image;
}
static inline void lora_rest(lora_t* l) { l->drops = 0; }

// The probability that an input is dropped, its scale, and the step of its random stream: each pair has its own.
static inline double lora_p(const lora_t* l) { return l->drops ? l->config.dropout : 0; }
static inline double lora_scale(const lora_t* l) { return l->config.alpha / l->config.rank; }
static inline uint64_t lora_step(const lora_t* l, const lora_pair_t* pair) {
    return l->step * (uint64_t)l->pairs + (uint64_t)pair->index;
}

// l->x = xd, l->z = z
static inline void lora_narrow(lora_t* l, const lora_pair_t* pair, const params_t* p,
                               const floatX* x, // (B, T, C)
                               int B, int T, stream_t s) {
    dropout_forward(l->x, x, lora_p(l), lora_scale(l), B, (size_t)T * pair->C, l->seed, RANDOM_DROPOUT,
                    lora_step(l, pair), l->first_image, s);
    matmul_forward(l->z, l->x, params_at(p, pair->a), NULL, (size_t)B * T, pair->C, l->config.rank, s);
}

// Behind the layer's own product.
void lora_forward(lora_t* l, const lora_pair_t* pair, const params_t* p,
                  floatX* out,     // (B, T, OC) +=
                  const floatX* x, // (B, T, C)
                  int B, int T, stream_t s) {
    if (!l->config.rank) return;
    lora_narrow(l, pair, p, x, B, T, s);
    matmul_add_forward(out, l->z, params_at(p, pair->b), (size_t)B * T, l->config.rank, pair->OC, s);
}

// Behind the layer's own backward.
void lora_backward(lora_t* l, const lora_pair_t* pair, const params_t* p,
                   floatX* dx,         // (B, T, C) +=
                   const floatX* dout, // (B, T, OC)
                   const floatX* x,    // (B, T, C)
                   int B, int T, stream_t s) {
    if (!l->config.rank) return;
    int r = l->config.rank, C = pair->C;
    size_t rows = (size_t)B * T;
    lora_narrow(l, pair, p, x, B, T, s);
    matmul_backward(l->dz, params_grad(p, pair->b), NULL, dout, l->z, params_at(p, pair->b), rows, r, pair->OC, s);
    matmul_backward(NULL, params_grad(p, pair->a), NULL, l->dz, l->x, NULL, rows, C, r, s);
    matmul_backward(l->x, NULL, NULL, l->dz, NULL, params_at(p, pair->a), rows, C, r, s);
    dropout_backward(dx, l->x, lora_p(l), lora_scale(l), B, (size_t)T * C, l->seed, RANDOM_DROPOUT, lora_step(l, pair),
                     l->first_image, s);
}

// weight += alpha / r B A, on the host. Products of floats are exact in double and the sum over r has one order, so
// that the result is the same bits on every machine; fma() leaves no compiler a choice in rounding the last step.
void lora_merge(floatS* weight,  // (OC, C) +=
                const floatS* a, // (r, C)
                const floatS* b, // (OC, r)
                double alpha, int OC, int C, int r) {
    #pragma omp parallel
    {
        double* sum = (double*)malloc_check(C * sizeof(double), "a row of a product");
        #pragma omp for schedule(static)
        for (int o = 0; o < OC; o++) {
            for (int c = 0; c < C; c++) sum[c] = 0;
            for (int k = 0; k < r; k++) {
                double factor = b[(size_t)o * r + k];
                for (int c = 0; c < C; c++) sum[c] += factor * a[(size_t)k * C + c];
            }
            floatS* row = weight + (size_t)o * C;
            for (int c = 0; c < C; c++) row[c] = (floatS)fma(alpha / r, sum[c], (double)row[c]);
        }
        free(sum);
    }
}
