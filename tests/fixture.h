// fixture.h: reads tests/fixtures/*.safetensors, what the PyTorch originals of our models answered, and compares with
// it. How the files are made and laid out stands in tests/fixtures/README.md.
//
// A file holds a tensor whole, or as "generate.<name>" = (base, amplitude, count): then it is a hash of name and index
// that is computed here as it was there. Of a large gradient it holds every stride-th element (gradsample.<name>), the
// norm, and the projection on a hashed vector (gradcheck.<name>), which depends on all elements.
#pragma once
// defines: check, check_error
#include "tests/test.h"
// defines: params_t, params_grad, params_from_file_order, params_to_file_order
#include "common/models/params.h"
// defines: safetensors_t, st_tensor_t, safetensors_open_or_die, safetensors_find, safetensors_read, ..._metadata
#include "common/files/safetensors.h"

// Number `index` of the sequence that belongs to a name: in [-1, 1), a multiple of 2^-23.
static inline double fixture_uniform(const char* name, size_t index) {
    uint32_t u = 2166136261u;
    for (const char* c = name; *c; c++) u = (u ^ (unsigned char)*c) * 16777619u;
    u += (uint32_t)(index * 2654435761u);
    for (int i = 0; i < 2; i++) u = (u ^ (u >> 16)) * 0x45D9F3Bu;
    u ^= u >> 16;
    return (u >> 8) / 8388608.0 - 1.0;
}

static inline void fixture_open(safetensors_t* f, const char* name) {
    char path[200];
    snprintf(path, sizeof path, "tests/fixtures/%s.safetensors", name);
    safetensors_open_or_die(f, path);
}

// "kind" + "name", or NULL.
static inline const st_tensor_t* fixture_find(const safetensors_t* f, const char* kind, const char* name) {
    char key[200];
    snprintf(key, sizeof key, "%s%s", kind, name);
    return safetensors_find(f, key);
}

// The values of a tensor that has to be there; the caller frees them.
static inline floatS* fixture_tensor(const safetensors_t* f, const char* name) {
    const st_tensor_t* t = safetensors_find(f, name);
    if (!t) fatal("%s: there is no tensor %s; make the fixtures again", f->path, name);
    floatS* values = (floatS*)malloc_check(t->numel * sizeof(floatS), name);
    safetensors_read(t, values);
    return values;
}

// ||got - want|| / ||want|| against the tensor `name`, which has to hold n values.
static inline void fixture_check(const safetensors_t* f, const char* name, const floatX* got, size_t n, double bound) {
    const st_tensor_t* t = safetensors_find(f, name);
    check(t && t->numel == n, name);
    if (!t || t->numel != n) return;
    floatS* want = fixture_tensor(f, name);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    check_error(name, sqrt(difference) / (norm > 0 ? sqrt(norm) : 1), bound);
    free(want);
}

// Fills every tensor of the table from param.<name> or generate.<name>.
static inline void fixture_parameters(const safetensors_t* f, params_t* p) {
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        const st_tensor_t* whole = fixture_find(f, "param.", t->name);
        const st_tensor_t* generated = fixture_find(f, "generate.", t->name);
        floatS rule[3] = {0, 0, 0};
        floatS* file = (floatS*)malloc_check((t->count + t->stored) * sizeof(floatS), t->name);
        floatS* memory = file + t->count;
        if (generated) safetensors_read(generated, rule);
        size_t count = whole ? whole->numel : (size_t)rule[2];
        if (count != t->count) fatal("%s: %s has %zu values, wanted %zu", f->path, t->name, count, t->count);
        if (whole) safetensors_read(whole, file);
        for (size_t k = 0; !whole && k < t->count; k++) {
            file[k] = (float)(rule[0] + (double)rule[1] * fixture_uniform(t->name, k));
        }
        params_from_file_order(memory, file, t);
        for (size_t k = 0; k < t->stored; k++) p->values[t->offset + k] = memory[k];
        free(file);
    }
}

// One gradient in file order against its samples, norm and projection.
static inline void fixture_check_sampled(const safetensors_t* f, const param_t* t, const floatS* got, double bound) {
    char name[200], sequence[200];
    floatS summary[3]; // stride, norm, projection
    safetensors_read(fixture_find(f, "gradcheck.", t->name), summary);
    snprintf(name, sizeof name, "gradsample.%s", t->name);
    snprintf(sequence, sizeof sequence, "grad.%s", t->name);
    floatS* want = fixture_tensor(f, name);
    double difference = 0, samples = 0, norm = 0, projection = 0;
    size_t stride = (size_t)summary[0];
    for (size_t i = 0; i < t->count; i++) {
        norm += (double)got[i] * got[i];
        projection += got[i] * fixture_uniform(sequence, i);
        if (i % stride) continue;
        difference += ((double)got[i] - want[i / stride]) * ((double)got[i] - want[i / stride]);
        samples += (double)want[i / stride] * want[i / stride];
    }
    check_error(t->name, sqrt(difference / samples), bound);
    check_error(t->name, fabs(sqrt(norm) / summary[1] - 1), bound);
    check_error(t->name, fabs(projection - summary[2]) / summary[1], bound); // a random direction has |v| ~ sqrt(n / 3)
    free(want);
}

// The gradient of every trained tensor. One that the file leaves out has to be named as zero there and be small here.
static inline void fixture_check_gradients(const safetensors_t* f, const params_t* p, double bound) {
    const char* config = safetensors_metadata(f, "config");
    double largest = 0;
    for (size_t i = 0; i < params_trained(p); i++) largest = fmax(largest, fabs((double)p->grads[i]));
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        if (!params_grad(p, t->offset)) continue;
        floatS* got = (floatS*)malloc_check(t->count * sizeof(floatS), t->name);
        params_to_file_order(got, params_grad(p, t->offset), t);
        char name[200];
        snprintf(name, sizeof name, "grad.%s", t->name);
        if (safetensors_find(f, name)) {
            fixture_check(f, name, got, t->count, bound);
        } else if (fixture_find(f, "gradcheck.", t->name)) {
            fixture_check_sampled(f, t, got, bound);
        } else {
            snprintf(name, sizeof name, "\"%s\"", t->name);
            check(config && strstr(config, name) != NULL, t->name);
            for (size_t k = 0; k < t->count; k++) check_error(t->name, fabs((double)got[k]) / largest, bound);
        }
        free(got);
    }
}
