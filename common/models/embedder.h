// embedder.h: how a diffusion transformer takes in what is one vector an image: a time's features, a pooled text.
//
//   out = W2 SiLU(W1 x + b1) + b2                                    (Peebles & Xie 2023, for the time; FLUX for all)
//
// Nothing needs the gradient of x. Look next at common/models/lightningdit.h and common/models/mmdit.h, the users.
#pragma once
// defines: params_t, param_table_t, param_vector, param_matrix, params_at, params_grad
#include "common/models/params.h"
// defines: plan_t, plan_floatX
#include "common/models/plan.h"
// defines: matmul_forward, matmul_backward, silu_forward, silu_backward
#include "common/ops.h"

enum { EMBEDDER_FREQUENCIES = 128, EMBEDDER_FEATURES = 2 * EMBEDDER_FREQUENCIES }; // of a time (timestep_features)

typedef struct {
    int in, dim;
    size_t in_weight, in_bias, out_weight, out_bias; // offsets
    const floatX* x; // (B, in) the caller's
    floatX* pre;     // (B, dim) before the SiLU
    floatX* hidden;  // (B, dim) behind it
    floatX* out;     // (B, dim)
} embedder_t;

// `first` and `second` are the names of the two layers behind `prefix`: "mlp.0", "mlp.2".
void embedder_register(embedder_t* e, param_table_t* table, const char* prefix, const char* first, const char* second,
                       int in, int dim) {
    char name[PARAM_NAME];
    init_t normal = init_normal(0, 0.02), zero = init_constant(0);
    e->in = in, e->dim = dim;
    param_name(name, prefix, first);
    e->in_weight = param_matrix(table, name, ".weight", dim, in, normal);
    e->in_bias = param_vector(table, name, ".bias", dim, zero);
    param_name(name, prefix, second);
    e->out_weight = param_matrix(table, name, ".weight", dim, dim, normal);
    e->out_bias = param_vector(table, name, ".bias", dim, zero);
}

void embedder_plan(embedder_t* e, plan_t* keep, int B) {
    size_t n = (size_t)B * e->dim;
    plan_floatX(keep, &e->pre, n, "embedder.pre");
    plan_floatX(keep, &e->hidden, n, "embedder.hidden");
    plan_floatX(keep, &e->out, n, "embedder.out");
}

void embedder_forward(embedder_t* e, const params_t* p, const floatX* x, int B, stream_t s) { // x: (B, in)
    e->x = x;
    matmul_forward(e->pre, x, params_at(p, e->in_weight), params_at(p, e->in_bias), B, e->in, e->dim, s);
    silu_forward(e->hidden, e->pre, (size_t)B * e->dim, s);
    matmul_forward(e->out, e->hidden, params_at(p, e->out_weight), params_at(p, e->out_bias), B, e->dim, e->dim, s);
}

void embedder_backward(embedder_t* e, const params_t* p,
                       const floatX* dout, // (B, dim)
                       floatX* dhidden,    // (B, dim) working space
                       int B, stream_t s) {
    matmul_backward(dhidden, params_grad(p, e->out_weight), params_grad(p, e->out_bias), dout, e->hidden,
                    params_at(p, e->out_weight), B, e->dim, e->dim, s);
    silu_backward(dhidden, dhidden, e->pre, (size_t)B * e->dim, s);
    matmul_backward(NULL, params_grad(p, e->in_weight), params_grad(p, e->in_bias), dhidden, e->x,
                    params_at(p, e->in_weight), B, e->in, e->dim, s);
}
