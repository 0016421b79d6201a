// adapter.h: the two-layer perceptron that maps each token of the encoder to a latent vector (AlignTok's adapter).
//
//   pre = W1 e + b1      hidden = gelu(pre)      z = W2 hidden + b2
//
// Token by token, so (B, GH, GW, D) features give a (B, GH, GW, d) latent map. In the paper's setting it is 1024 ->
// 64 -> 32: 67,680 parameters between 304 M of encoder and 41 M of decoder. Its output is the latent as it is:
// nothing is sampled and nothing normalised.
//
// Backward, with dz given:  dW2 = dz^T hidden;  dpre = (dz W2) gelu'(pre);  dW1 = dpre^T e;  de = dpre W1.
// `hidden_out` is public: an adaptive weight forms dW2 from the gradients of single losses
// (common/training/tokenizer.h). Names: adapter.fc1.weight, .bias, adapter.fc2.weight, .bias. Look next at
// common/models/decoder.h, which reads z.
#pragma once
// defines: params_t, param_table_t, param_vector, param_matrix, params_at, params_grad, init_fan_in
#include "common/models/params.h"
// defines: plan_t, plan_floatX
#include "common/models/plan.h"
// defines: matmul_forward, matmul_gelu_forward, matmul_backward, gelu_backward
#include "common/ops.h"

typedef struct {
    int in, hidden, out; // widths: D, h, d; set before registering
    size_t fc1_weight, fc1_bias, fc2_weight, fc2_bias; // offsets
    size_t N;            // tokens of all images, as planned
    floatX* pre;         // (N, h)
    floatX* hidden_out;  // (N, h) gelu(pre)
    floatX* z;           // (N, d) the output
    floatX* dhidden;     // (N, h)
} adapter_t;

// Registers the four tensors behind `prefix`, with PyTorch's default initialisers for linear layers.
void adapter_register(adapter_t* a, param_table_t* table, const char* prefix) {
    char name[160];
    snprintf(name, sizeof name, "%sadapter.", prefix);
    a->fc1_weight = param_matrix(table, name, "fc1.weight", a->hidden, a->in, init_fan_in(a->in));
    a->fc1_bias = param_vector(table, name, "fc1.bias", a->hidden, init_fan_in(a->in));
    a->fc2_weight = param_matrix(table, name, "fc2.weight", a->out, a->hidden, init_fan_in(a->hidden));
    a->fc2_bias = param_vector(table, name, "fc2.bias", a->out, init_fan_in(a->hidden));
}

// Multiply-accumulates of the forward of one token.
size_t adapter_macs(const adapter_t* a) { return (size_t)a->hidden * (a->in + a->out); }

// Plans a pass over N tokens: what outlives it, and what the backward works in.
void adapter_plan(adapter_t* a, plan_t* keep, size_t N) {
    a->N = N;
    plan_floatX(keep, &a->pre, N * a->hidden, "adapter.pre");
    plan_floatX(keep, &a->hidden_out, N * a->hidden, "adapter.hidden_out");
    plan_floatX(keep, &a->z, N * a->out, "adapter.z");
}
void adapter_plan_work(adapter_t* a, plan_t* work) {
    plan_floatX(work, &a->dhidden, a->N * a->hidden, "adapter.dhidden");
}

// Writes a->z.
void adapter_forward(adapter_t* a, const params_t* p,
                     const floatX* e, // (N, D)
                     stream_t s) {
    matmul_gelu_forward(a->hidden_out, a->pre, e, params_at(p, a->fc1_weight), params_at(p, a->fc1_bias), a->N, a->in,
                        a->hidden, ACT_GELU, s);
    matmul_forward(a->z, a->hidden_out, params_at(p, a->fc2_weight), params_at(p, a->fc2_bias), a->N, a->hidden, a->out,
                   s);
}

// The gradient of the features alone, for the first N tokens: no parameter's gradient is touched.
void adapter_backward_data(adapter_t* a, const params_t* p,
                           floatX* de,       // (N, D)
                           const floatX* dz, // (N, d)
                           size_t N, stream_t s) {
    matmul_backward(a->dhidden, NULL, NULL, dz, NULL, params_at(p, a->fc2_weight), N, a->hidden, a->out, s);
    gelu_backward(a->dhidden, a->dhidden, a->pre, N * a->hidden, ACT_GELU, s);
    matmul_backward(de, NULL, NULL, a->dhidden, NULL, params_at(p, a->fc1_weight), N, a->in, a->hidden, s);
}

// de = the gradient of the features (NULL: not computed); the gradients of trained parameters accumulate.
void adapter_backward(adapter_t* a, params_t* p,
                      floatX* de,       // (N, D) or NULL
                      const floatX* dz, // (N, d)
                      const floatX* e,  // (N, D)
                      stream_t s) {
    matmul_backward(a->dhidden, params_grad(p, a->fc2_weight), params_grad(p, a->fc2_bias), dz, a->hidden_out,
                    params_at(p, a->fc2_weight), a->N, a->hidden, a->out, s);
    gelu_backward(a->dhidden, a->dhidden, a->pre, a->N * a->hidden, ACT_GELU, s);
    matmul_backward(de, params_grad(p, a->fc1_weight), params_grad(p, a->fc1_bias), a->dhidden, e,
                    params_at(p, a->fc1_weight), a->N, a->in, a->hidden, s);
}
