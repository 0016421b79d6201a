// test_vit_gradient.c: a whole ViT and its adapter against finite differences, in double.
//
// The objective is a random projection of the latent, L = <r, adapter(vit(image))>. Every tensor of the table is
// moved along random directions, which tests the chain of all derivatives at once: position resampling, tokens, rotary
// positions, attention, residual norms, GELU, adapter; with low-rank pairs both the weights and the pairs beside them.
// The single operations have tests of their own.

// defines: vit_t, vit_register, vit_plan, vit_plan_work, vit_forward, vit_backward
#include "common/models/vit.h"
// defines: adapter_t, adapter_register, adapter_plan, adapter_plan_work, adapter_forward, adapter_backward
#include "common/models/adapter.h"
// defines: check_gradient, check_model_accumulates, dot, random_buffer
#include "tests/gradient.h"

typedef struct {
    vit_t vit;
    adapter_t adapter;
    params_t params;
    plan_t plan;
    double* image;
    double* features;  // copy of the ViT's output, to move the adapter's input alone
    double* dfeatures;
    double* direction; // r
    size_t pixels, n;  // sizes of the image and of the latent
} chain_t;

void chain_make(chain_t* c, const char* id, int B, int H, int W, int factor, int recompute, int rank) {
    memset(c, 0, sizeof *c);
    c->vit.config = *vit_config_find(id);
    c->vit.recompute = recompute;
    lora_config_t lora = {rank, 1.5 * rank, 0.2};
    c->vit.lora.config = lora;
    vit_register(&c->vit, &c->params.table, "encoder.");
    if (rank) vit_register_lora(&c->vit, &c->params.table, "encoder.");
    lora_draw(&c->vit.lora, 3, 17, 5);
    c->adapter.in = c->vit.config.dim;
    c->adapter.hidden = 11;
    c->adapter.out = 5;
    adapter_register(&c->adapter, &c->params.table, "");
    params_allocate(&c->params, 0, 0, "parameters");
    vit_plan(&c->vit, &c->plan, B, H, W, factor, 1);
    adapter_plan(&c->adapter, &c->plan, (size_t)B * c->vit.GH * c->vit.GW);
    vit_plan_work(&c->vit, &c->plan);
    adapter_plan_work(&c->adapter, &c->plan);
    plan_allocate(&c->plan, "activations");
    memset(c->plan.memory, 0xFF, plan_bytes(&c->plan));
    for (int i = 0; i < c->params.table.n; i++) {
        const param_t* t = &c->params.table.items[i];
        double base = t->init.kind == INIT_CONSTANT ? t->init.value : 0, amplitude = t->ndim >= 2 ? 0.2 : 0.1;
        for (size_t j = 0; j < t->count; j++) c->params.values[t->offset + j] = base + amplitude * test_normal();
    }
    c->pixels = (size_t)B * H * W * 3;
    c->n = c->adapter.N * c->adapter.out;
    c->image = random_buffer(c->pixels);
    c->features = random_buffer(c->adapter.N * c->adapter.in);
    c->dfeatures = poisoned_buffer(c->adapter.N * c->adapter.in);
    c->direction = random_buffer(c->n);
}

void chain_free(chain_t* c) {
    params_free(&c->params);
    plan_free(&c->plan);
    free(c->image);
    free(c->features);
    free(c->dfeatures);
    free(c->direction);
}

double chain_objective(void* context) {
    chain_t* c = (chain_t*)context;
    vit_forward(&c->vit, &c->params, c->image, 0);
    adapter_forward(&c->adapter, &c->params, c->vit.features, 0);
    return dot(c->adapter.z, c->direction, c->n);
}

void chain_backward(void* context) {
    chain_t* c = (chain_t*)context;
    adapter_backward(&c->adapter, &c->params, c->dfeatures, c->direction, c->vit.features, 0);
    vit_backward(&c->vit, &c->params, c->dfeatures, 0);
}

void test_chain(const char* id, int H, int W, int factor, int recompute, int rank) {
    chain_t c;
    chain_make(&c, id, 2, H, W, factor, recompute, rank);
    chain_objective(&c);
    chain_backward(&c);
    for (int i = 0; i < c.params.table.n; i++) {
        const param_t* t = &c.params.table.items[i];
        check_gradient(t->name, chain_objective, &c, c.params.values + t->offset, c.params.grads + t->offset, t->count);
    }
    check_model_accumulates(chain_objective, chain_backward, &c, c.params.grads, c.params.table.total);
    chain_free(&c);
}

double adapter_objective(void* context) {
    chain_t* c = (chain_t*)context;
    adapter_forward(&c->adapter, &c->params, c->features, 0);
    return dot(c->adapter.z, c->direction, c->n);
}

// The adapter alone: the gradient of its input, by both of the ways to ask for it.
void test_adapter(void) {
    chain_t c;
    chain_make(&c, "tiny", 3, 16, 24, 8, 0, 0);
    size_t n = c.adapter.N * c.adapter.in, part = 7;
    double* de = poisoned_buffer(n);
    double* grads = random_buffer(c.params.table.total);
    adapter_objective(&c);
    adapter_backward(&c.adapter, &c.params, c.dfeatures, c.direction, c.features, 0);
    check_gradient("features", adapter_objective, &c, c.features, c.dfeatures, n);
    adapter_objective(&c);
    memcpy(grads, c.params.grads, c.params.table.total * sizeof(double));
    adapter_backward_data(&c.adapter, &c.params, de, c.direction, part, 0);
    check_error("features of some tokens", relative_error_double(de, c.dfeatures, part * c.adapter.in), 1e-14);
    check(isnan(de[part * c.adapter.in]), "no more tokens are written than asked for");
    size_t bytes = c.params.table.total * sizeof(double);
    check(!memcmp(grads, c.params.grads, bytes), "parameters' gradients are left alone");
    check(adapter_macs(&c.adapter) == 24 * 11 + 11 * 5, "multiply-accumulates of a token");
    free(de);
    free(grads);
    chain_free(&c);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("adapter alone")) { test_adapter(); test_end_case(); }
    if (test_case("tiny: 3x3 positions used at 2x3")) { test_chain("tiny", 16, 24, 8, 0, 0); test_end_case(); }
    if (test_case("tiny-reg: positions used at 5x1")) { test_chain("tiny-reg", 40, 8, 8, 0, 0); test_end_case(); }
    if (test_case("tiny-siglip: 16 pixels a token")) { test_chain("tiny-siglip", 48, 48, 16, 0, 0); test_end_case(); }
    if (test_case("tiny-reg with recompute")) { test_chain("tiny-reg", 16, 24, 8, 1, 0); test_end_case(); }
    if (test_case("tiny-rope: rotary positions of 2x3")) { test_chain("tiny-rope", 16, 24, 8, 0, 0); test_end_case(); }
    if (test_case("tiny-rope with recompute, 1x4")) { test_chain("tiny-rope", 8, 32, 8, 1, 0); test_end_case(); }
    if (test_case("tiny-rope, low-rank pairs")) { test_chain("tiny-rope", 16, 24, 8, 0, 3); test_end_case(); }
    if (test_case("tiny-siglip, low-rank pairs, recompute")) {
        test_chain("tiny-siglip", 24, 24, 8, 1, 2);
        test_end_case();
    }
    return test_finish();
}
