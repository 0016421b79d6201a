// check_encoder.c: a DINOv2-L or DINOv3-L as timm writes it, loaded and compared at full size.
//
//     python dev/reference/full_size.py dinov2-l weights.safetensors tokens.safetensors
//     build/cpu/check_encoder dinov2-l weights.safetensors tokens.safetensors
//
// The first line makes a file in timm's real format (300 million parameters, random) with an image and the tokens that
// timm computes for it; for DINOv2 256 -> 224 pixels, position table 37x37 -> 16x16. The second loads the file with the
// code that loads the published one and prints how far the tokens differ. Not part of `make test`: it needs 1.2 GB of
// weights and Python.
#include <math.h>

// defines: vit_t, vit_forward
#include "common/models/vit.h"
// defines: weights_load_vit
#include "common/models/weights.h"
// defines: clock_seconds
#include "common/program/clock.h"

static const st_tensor_t* find(const safetensors_t* f, const char* name, size_t n) {
    const st_tensor_t* t = safetensors_find(f, name);
    if (!t || t->numel != n)
        fatal("%s: tensor %s of %zu values is missing; make the file with full_size.py", f->path, name, n);
    return t;
}

int main(int argc, char** argv) {
    if (argc != 4) fatal("usage: check_encoder ENCODER WEIGHTS TOKENS (see full_size.py)");
    const int size = 256;
    static vit_t vit;
    params_t params;
    plan_t plan = {0};
    memset(&params, 0, sizeof params);
    vit.config = *vit_config_find(argv[1]);
    vit_register(&vit, &params.table, "encoder.");
    vit_plan(&vit, &plan, 1, size, size, 16, 0);
    vit_plan_work(&vit, &plan);
    params_allocate(&params, params.table.total, 0, argv[1]);
    plan_allocate(&plan, "activations");
    weights_load_vit(&params, &vit.config, "encoder.", argv[2]);

    safetensors_t file;
    safetensors_open_or_die(&file, argv[3]);
    size_t pixels = (size_t)size * size * 3, values = (size_t)vit.GH * vit.GW * vit.config.dim;
    floatS* image = (floatS*)malloc_check(pixels * sizeof(floatS), "image");
    floatS* tokens = (floatS*)malloc_check(values * sizeof(floatS), "tokens");
    safetensors_read(find(&file, "image", pixels), image);
    safetensors_read(find(&file, "tokens", values), tokens);
    double start = clock_seconds(), difference = 0, norm = 0;
    vit_forward(&vit, &params, image, 0);
    double seconds = clock_seconds() - start;
    for (size_t i = 0; i < values; i++) {
        difference += ((double)vit.features[i] - tokens[i]) * ((double)vit.features[i] - tokens[i]);
        norm += (double)tokens[i] * tokens[i];
    }
    double error = sqrt(difference / norm);
    printf("%s by timm: %zu parameters, tokens differ by %.2e (bound 1e-4), %.2f s\n", argv[1],
           param_count(&params.table, 0, params.table.total), error, seconds);
    return error <= 1e-4 ? 0 : 1;
}
