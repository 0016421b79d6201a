// test_lightningdit_gradient.c: a whole LightningDiT against finite differences, in double.
//
// The objective is a random projection of the velocity, L = <dv, v>. Every tensor of the table but the frozen position
// table is moved along random directions, which tests the chain of all derivatives at once: condition, modulation of
// all blocks, gated residual norms, QK-norm and rotation, attention, MLP, patches. Directions reach into the padding of
// the MLP, where the derivative has to be zero. The single operations have tests of their own.

// defines: bed_t, bed_config, bed_make, bed_randomise, bed_forward, bed_backward, bed_padding_is_zero, bed_free
#include "tests/lightningdit_bed.h"
// defines: check_gradient_h, check_model_accumulates, dot
#include "tests/gradient.h"

double objective(void* context) {
    bed_t* m = (bed_t*)context;
    bed_forward(m);
    return dot(m->dit.v, m->dv, m->outputs);
}

void backward(void* context) { bed_backward((bed_t*)context); }

void test_chain(const char* id, const char* options, int recompute) {
    bed_t m;
    bed_make(&m, bed_config(id, options), 3, 1, recompute);
    bed_randomise(&m);
    params_t* p = &m.params;
    objective(&m);
    bed_backward(&m);
    check(params_grad(p, m.dit.pos_embed) == NULL, "the position table is frozen");
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const double* grad = params_grad(p, t->offset);
        if (!grad) continue;
        check(dot(grad, grad, t->stored) > 0, t->name);
        check(bed_padding_is_zero(t, grad), t->name);
        check_gradient_h(t->name, objective, &m, p->values + t->offset, grad, t->stored, 3e-4, 1e-6);
    }
    check_model_accumulates(objective, backward, &m, p->grads, params_trained(p));
    bed_free(&m);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("patch 1")) { test_chain("tiny/1", "", 0); test_end_case(); }
    if (test_case("patch 2, QK-norm")) { test_chain("tiny/2", "Q", 0); test_end_case(); }
    if (test_case("patch 1, no shift")) { test_chain("tiny/1", "N", 0); test_end_case(); }
    if (test_case("patch 2, GELU, QK-norm, no shift")) { test_chain("tiny/2", "GNQ", 0); test_end_case(); }
    if (test_case("patch 2, as DiT")) { test_chain("tiny/2", "D", 0); test_end_case(); }
    if (test_case("patch 1, as DiT, recompute")) { test_chain("tiny/1", "D", 1); test_end_case(); }
    if (test_case("patch 1, QK-norm, recompute")) { test_chain("tiny/1", "Q", 1); test_end_case(); }
    return test_finish();
}
