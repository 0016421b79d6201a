// state_file.h: the parts that every file with a training state is made of: a table of parameters, kind by kind.
//
// A section is one kind of value (weights, a moment, an average) of one table, under a prefix: "adam.m." + NAME. Files
// hold F32 under public names, convolutions as (OC, C, K, K). What a model's file consists of is a list of sections and
// a few texts and vectors: common/training/tokenizer_checkpoint.h for the tokenizer, common/training/dit_checkpoint.h
// for LightningDiT. Look next at common/files/safetensors.h, the format, and at one of those two.
#pragma once
// defines: safetensors_t, safetensors_find, safetensors_read
#include "common/files/safetensors.h"
// defines: st_writer_t, safetensors_writer_*
#include "common/files/safetensors_writer.h"
// defines: params_t, param_kind_t, params_get, params_set; comm_t, comm_is_first, replicas_collect
#include "common/training/replicas.h"

// One kind of value of one table under one prefix: the unit that is written and read.
typedef struct {
    params_t* params;
    param_kind_t kind;
    const char* prefix;
} checkpoint_section_t;

// Does a section hold this tensor? Moments and averages exist for trained tensors only.
static inline int checkpoint_holds(const checkpoint_section_t* section, const param_t* t) {
    return section->kind == PARAM_VALUE || t->offset >= section->params->first;
}

static inline size_t checkpoint_section_values(const checkpoint_section_t* section) {
    const param_table_t* table = &section->params->table;
    size_t values = 0;
    for (int i = 0; i < table->n; i++) {
        if (checkpoint_holds(section, &table->items[i])) values += table->items[i].count;
    }
    return values;
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

static inline void checkpoint_declare(st_writer_t* w, const char* prefix, const char* name, int ndim,
                                      const int* shape) {
    char full[200];
    size_t sizes[4];
    for (int i = 0; i < ndim; i++) sizes[i] = (size_t)shape[i];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    safetensors_writer_tensor(w, full, ST_F32, ndim, sizes);
}

// The tensors of a section go into the header.
static inline void checkpoint_declare_section(st_writer_t* w, const checkpoint_section_t* section) {
    const param_table_t* table = &section->params->table;
    for (int i = 0; i < table->n; i++) {
        const param_t* p = &table->items[i];
        if (checkpoint_holds(section, p)) checkpoint_declare(w, section->prefix, p->name, p->ndim, p->shape);
    }
}

static inline void checkpoint_number(st_writer_t* w, const char* key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    safetensors_writer_metadata(w, key, text);
}

// The tensors of one section. Every process takes part in collecting them; the first one writes.
static inline void checkpoint_write_section(st_writer_t* w, comm_t* comm, const checkpoint_section_t* section,
                                            floatS* host, size_t longest, stream_t s) {
    params_t* params = section->params;
    const floatS* state = params_trained(params) ? replicas_collect(params, section->kind, comm, s) : NULL;
    int writes = !comm || comm_is_first(comm);
    for (int i = 0; writes && i < params->table.n; i++) {
        const param_t* p = &params->table.items[i];
        if (!checkpoint_holds(section, p)) continue;
        params_get(params, state, p, host, host + longest);
        safetensors_writer_data(w, host, p->count);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

// A number that must stand in the metadata.
static inline int64_t checkpoint_metadata_number(const safetensors_t* f, const char* path, const char* key) {
    const char* text = safetensors_metadata(f, key);
    char* end = NULL;
    int64_t number = text ? strtoll(text, &end, 10) : -1;
    if (!text || end == text || *end || number < 0) {
        fatal("%s: metadata field \"%s\" is %s, wanted a number; the file is damaged", path, key,
              text ? text : "missing");
    }
    return number;
}

// Collects what does not fit between a table and a file, so that one message tells all of it.
typedef struct {
    int missing, wrong_shape;
    char first_missing[400], first_wrong[800];
} checkpoint_mismatch_t;

static inline void checkpoint_list(char* list, size_t size, int number, const char* text) {
    size_t used = strlen(list);
    if (number <= 5) snprintf(list + used, size - used, "%s%s", number > 1 ? ", " : "", text);
}

// host = one tensor of a file, in the shape of `p`. 1, or 0 when it does not fit: then it stands in *mismatch.
static inline int checkpoint_read_values(const safetensors_t* f, const char* name, const param_t* p,
                                         floatS* host, // (count)
                                         checkpoint_mismatch_t* mismatch) {
    const st_tensor_t* tensor = safetensors_find(f, name);
    if (!tensor) {
        checkpoint_list(mismatch->first_missing, sizeof mismatch->first_missing, ++mismatch->missing, name);
        return 0;
    }
    int same = tensor->ndim == p->ndim;
    for (int i = 0; same && i < p->ndim; i++) same = tensor->shape[i] == (size_t)p->shape[i];
    if (!same || !st_dtype_is_float(tensor->dtype)) {
        checkpoint_list(mismatch->first_wrong, sizeof mismatch->first_wrong, ++mismatch->wrong_shape, name);
        return 0;
    }
    safetensors_read(tensor, host);
    return 1;
}

// Reads one tensor of a file as `kind` of tensor `p`.
static inline void checkpoint_read_tensor(const safetensors_t* f, const char* name, params_t* params, param_kind_t kind,
                                          const param_t* p, floatS* host, size_t longest,
                                          checkpoint_mismatch_t* mismatch) {
    if (checkpoint_read_values(f, name, p, host, mismatch)) params_set(params, kind, p, host, host + longest);
}

static inline void checkpoint_report(const char* path, const checkpoint_mismatch_t* m) {
    if (!m->missing && !m->wrong_shape) return;
    fatal("%s: the tensors do not fit this configuration: %d missing (%s), %d of another shape or type (%s); "
          "use the flags that the file was made with, or another file",
          path, m->missing, m->missing ? m->first_missing : "none", m->wrong_shape,
          m->wrong_shape ? m->first_wrong : "none");
}

// One vector of `count` values by name.
static inline void checkpoint_read_vector(const safetensors_t* f, const char* path, const char* name, floatS* out,
                                          int count) {
    const st_tensor_t* tensor = safetensors_find(f, name);
    if (!tensor || tensor->numel != (size_t)count || !st_dtype_is_float(tensor->dtype)) {
        fatal("%s: tensor %s is %s; the file is damaged or of another configuration", path, name,
              tensor ? "of another size" : "missing");
    }
    safetensors_read(tensor, out);
}

// Reads the tensors of a section into its table.
static inline void checkpoint_read_section(const safetensors_t* f, const checkpoint_section_t* section, floatS* host,
                                           size_t longest, checkpoint_mismatch_t* mismatch) {
    const param_table_t* table = &section->params->table;
    for (int i = 0; i < table->n; i++) {
        const param_t* p = &table->items[i];
        char name[200];
        if (!checkpoint_holds(section, p)) continue;
        snprintf(name, sizeof name, "%s%s", section->prefix, p->name);
        checkpoint_read_tensor(f, name, section->params, section->kind, p, host, longest, mismatch);
    }
}
