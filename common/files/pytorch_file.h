// pytorch_file.h: PyTorch's .pt, .pth, .ckpt and .bin files as a table of tensors. No Python, and nothing is executed.
//
// Since PyTorch 1.6 a file is a zip archive of stored entries below a folder of any name:
//
//     archive/data.pkl        a pickle (common/files/pickle.h); its tensors point to storages by key
//     archive/data/0, 1, ...  the bytes of storage "0", "1", ... : mapped, not read
//     archive/byteorder       "little" (since 2.0); archive/version and others say nothing that is needed
//
// Before, and in many files that are still downloaded (the heads of LPIPS), it is five pickles and the bytes:
//
//     0x1950a86a20f9469cfc6c | 1001 | {"little_endian": True, ...} | the object | [key, key, ...]
//     for each key in this order: int64 number of elements, and the elements
//
// The object is usually a dictionary of dictionaries; a tensor's name is its keys with dots between, and so is that of
// a number or text, which becomes metadata:
//
//     {"model": {"blocks.0.norm1.weight": T, ...}, "ema": {...}, "args": Namespace(lr=0.0002), "epoch": 7}
//     -> tensors model.blocks.0.norm1.weight, ..., ema.blocks...; metadata args.lr = 0.0002, epoch = 7
//
// Lists count from 0 (opt.param_groups.0.lr). The result is a safetensors_t: whoever reads safetensors reads this, and
// prefixes ("ema.") choose among the models of a file as they do there.
//
// A tensor is a view of a storage: offset, shape and strides in elements. Where it lies in one piece it is handed out
// as it lies in the map; otherwise (a transposed matrix) a copy is made when the file is opened. Several tensors may
// show one storage, and one tensor an element several times (expand, unfold). How far it reaches is checked against the
// bytes that are there.
//
// Left out: quantized and sparse tensors, tensors inside of objects (a whole module that was saved, rather than its
// state_dict), TorchScript, big-endian files, and the tar files of PyTorch 0.1: each is refused by name. Bytes of
// tensors are not compared with their CRC-32 (PyTorch does not either; `eval -inspect` does).
// Look next at common/files/tensor_file.h, which opens any weight file.
#pragma once
// defines: pickle_t, pickle_value_t, pickle_begin, pickle_run, pickle_item, pickle_free
#include "common/files/pickle.h"
// defines: safetensors_t, st_tensor_t, st_sort, json_text_t
#include "common/files/safetensors.h"
// defines: zip_t, zip_open, zip_find, zip_data, zip_read
#include "common/files/zip.h"

enum {
    PYTORCH_NAME = 512,             // bytes of a tensor's name
    PYTORCH_DEPTH = 64,             // containers within containers
    PYTORCH_VISITS = 1000000,       // values that are looked at; a container that is reached twice counts twice
    PYTORCH_TEXTS = 1 << 28,        // bytes of all names and metadata
    PYTORCH_COPIES = 1 << 28,       // bytes that expanded tensors may unfold to, beyond the size of the file
};

typedef struct {
    pickle_t pickle;
    safetensors_t* file;
    json_text_t texts;     // names, keys and values, each with its NUL
    pickle_ints_t tensors; // for each: number of the tensor, where its name stands in texts
    pickle_ints_t scalars; // for each: where key and value stand in texts
    char name[PYTORCH_NAME];
    int visits;
    int path[PYTORCH_DEPTH + 1]; // containers from the object down to the one that is looked at
    size_t copies;       // bytes that do not lie in the file as they are needed
    unsigned char* room; // for these, in file->strings
    size_t used;
    char* error;
    size_t error_size;
} pytorch_t;

__attribute__((format(printf, 2, 3))) static inline int pytorch_fail(pytorch_t* w, const char* format, ...) {
    char reason[512];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return file_fail(w->error, w->error_size, "%s", reason);
}

// ---------------------------------------------------------------------------------------------------------------------
// Names: walking the object

static inline int pytorch_add_text(pytorch_t* w, const char* text, size_t length) {
    int at = (int)w->texts.length;
    json_reserve(&w->texts, length + 1);
    memcpy(w->texts.text + at, text, length);
    w->texts.text[(size_t)at + length] = 0;
    w->texts.length += length + 1;
    return at;
}

// A number or text becomes metadata under its name. Texts with NULs or beyond 64 KiB are none that somebody reads.
static inline void pytorch_scalar(pytorch_t* w, const pickle_value_t* v) {
    char number[40];
    const char* text = number;
    size_t length = 0;
    if (v->kind == PICKLE_BOOL) text = v->as.integer ? "True" : "False";
    if (v->kind == PICKLE_INT) snprintf(number, sizeof number, "%lld", (long long)v->as.integer);
    if (v->kind == PICKLE_FLOAT) { // the shortest that gives the same number
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(number, sizeof number, "%.*g", digits, v->as.real);
            if (strtod(number, NULL) == v->as.real) break;
        }
    }
    if (v->kind == PICKLE_TEXT) {
        text = v->as.text;
        length = (size_t)v->count;
        if (length > 65536 || memchr(text, 0, length)) return;
    } else {
        length = strlen(text);
    }
    pickle_add(&w->scalars, pytorch_add_text(w, w->name, strlen(w->name)));
    pickle_add(&w->scalars, pytorch_add_text(w, text, length));
}

// Adds ".key" to the name, which has `length` bytes. The new length, or -1 where it is no name: too long, or with a
// NUL.
static inline int pytorch_add_key(pytorch_t* w, int length, const pickle_value_t* key, int position) {
    char number[32];
    const char* text = number;
    int n = 0;
    if (key && key->kind == PICKLE_TEXT) {
        text = key->as.text;
        n = key->count;
    } else { // other keys than texts and numbers have no name: which one it is
        int64_t value = key && key->kind == PICKLE_INT ? key->as.integer : position;
        n = snprintf(number, sizeof number, "%lld", (long long)value);
    }
    int dot = length > 0;
    if (n > PYTORCH_NAME - 2 - length || (n && memchr(text, 0, (size_t)n))) return -1;
    if (dot) w->name[length] = '.';
    if (n) memcpy(w->name + length + dot, text, (size_t)n);
    w->name[length + dot + n] = 0;
    return length + dot + n;
}

// Notes all tensors and scalars below a value whose name has `length` bytes. 1, or 0 with a message.
static inline int pytorch_walk(pytorch_t* w, int value, int length, int depth) {
    const pickle_value_t* v = &w->pickle.values[value];
    if (++w->visits > PYTORCH_VISITS || depth > PYTORCH_DEPTH || w->texts.length > PYTORCH_TEXTS) {
        return pytorch_fail(w, "\"%.80s\" has no end: over %d values, %d containers in one another, or %d bytes of "
                            "names", w->name, PYTORCH_VISITS, PYTORCH_DEPTH, PYTORCH_TEXTS);
    }
    w->path[depth] = value;
    for (int i = 0; i < depth; i++) {
        if (w->path[i] == value) return 1; // it refers to itself, and has been seen
    }
    if (v->kind == PICKLE_TENSOR) {
        pickle_add(&w->tensors, (int)v->as.integer);
        pickle_add(&w->tensors, pytorch_add_text(w, w->name, (size_t)length));
        return 1;
    }
    int pairs = v->kind == PICKLE_DICT || v->kind == PICKLE_FIELDS, step = pairs ? 2 : 1;
    if (!pickle_is_container(v)) {
        int number = v->kind == PICKLE_BOOL || v->kind == PICKLE_INT || v->kind == PICKLE_FLOAT;
        if ((number || v->kind == PICKLE_TEXT) && length) pytorch_scalar(w, v);
        return 1;
    }
    for (int i = 0; i + step <= v->count; i += step) {
        int item = v->as.items[i + step - 1];
        pickle_kind_t kind = w->pickle.values[item].kind;
        if (!pairs && kind != PICKLE_TENSOR && !pickle_is_container(&w->pickle.values[item])) continue; // loose numbers
        const pickle_value_t* key = pairs ? &w->pickle.values[v->as.items[i]] : NULL;
        int longer = pytorch_add_key(w, length, key, i / step);
        if (longer < 0) continue; // a text of its own, such as a caption: no tensor's name
        if (!pytorch_walk(w, item, longer, depth + 1)) return 0;
        w->name[length] = 0;
    }
    return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors

// Checks one tensor against its storage. `whole` says whether it lies in one piece. 1, or 0 with a message.
static inline int pytorch_check_tensor(pytorch_t* w, const pickle_tensor_t* p, const char* name, st_tensor_t* t,
                                       int* whole) {
    const pickle_storage_t* s = &w->pickle.storages[p->storage];
    size_t bytes = st_dtype_info((st_dtype_t)p->dtype).bits / 8, last = p->offset, expected = 1, end = 0;
    int overflow = 0;
    t->name = name;
    t->file = w->file->path;
    t->dtype = (st_dtype_t)p->dtype;
    t->ndim = p->ndim;
    t->numel = 1;
    *whole = 1;
    for (int i = 0; i < p->ndim; i++) {
        t->shape[i] = p->shape[i];
        overflow |= __builtin_mul_overflow(t->numel, p->shape[i], &t->numel);
    }
    for (int i = p->ndim; i-- && t->numel && !overflow;) {
        size_t step = 0;
        if (p->shape[i] == 1) continue;
        if (p->stride[i] != expected) *whole = 0;
        overflow |= __builtin_mul_overflow(p->shape[i] - 1, p->stride[i], &step);
        overflow |= __builtin_add_overflow(last, step, &last);
        expected *= p->shape[i];
    }
    overflow |= __builtin_add_overflow(last, t->numel > 0, &last); // elements of the storage that it reaches into
    overflow |= __builtin_mul_overflow(last, bytes, &end);
    if (t->numel == 0) end = 0;
    if (overflow || end > s->bytes || t->numel > SIZE_MAX / bytes / 2) {
        char shape[256];
        return pytorch_fail(w, "tensor \"%.120s\" of shape %s needs more than the %zu bytes of its "
                         "storage \"%.*s\": the file is damaged", name, st_shape_text(t, shape, sizeof shape), s->bytes,
                         s->key_length < 40 ? s->key_length : 40, s->key);
    }
    t->begin = 0;
    t->end = t->numel * bytes;
    t->data = s->data && t->numel ? s->data + p->offset * bytes : s->data;
    return 1;
}

// out = the elements of a tensor one after another, last index fastest
static inline void pytorch_copy(unsigned char* out, const unsigned char* data, const pickle_tensor_t* p, size_t numel) {
    size_t bytes = st_dtype_info((st_dtype_t)p->dtype).bits / 8, at = 0, index[ST_MAX_DIMENSIONS] = {0};
    for (size_t k = 0; k < numel; k++) {
        memcpy(out + k * bytes, data + at * bytes, bytes);
        for (int i = p->ndim; i--;) { // the next index
            at += p->stride[i];
            if (++index[i] < p->shape[i]) break;
            at -= p->stride[i] * p->shape[i];
            index[i] = 0;
        }
    }
}

// All tensors of the file, whose texts have moved to their place behind the copies. `begin` and `end` are as if they
// lay one after another in the order of the dictionaries, which is thus the order of the table.
static inline int pytorch_make_tensors(pytorch_t* w, const char* texts) {
    safetensors_t* f = w->file;
    size_t begin = 0;
    for (int i = 0; i < f->n; i++) {
        st_tensor_t* t = &f->tensors[i];
        const pickle_tensor_t* p = &w->pickle.tensors[w->tensors.items[2 * i]];
        int whole;
        if (!pytorch_check_tensor(w, p, texts + w->tensors.items[2 * i + 1], t, &whole)) return 0;
        if (!whole) {
            pytorch_copy(w->room + w->used, t->data, p, t->numel);
            t->data = w->room + w->used;
            w->used += t->end;
        }
        t->begin = begin;
        begin = t->end += begin;
    }
    return 1;
}

// The bytes of copies of tensors that do not lie in one piece.
static inline int pytorch_count_copies(pytorch_t* w, size_t limit) {
    for (int i = 0; i < w->file->n; i++) {
        st_tensor_t t;
        const pickle_tensor_t* p = &w->pickle.tensors[w->tensors.items[2 * i]];
        int whole;
        memset(&t, 0, sizeof t);
        if (!pytorch_check_tensor(w, p, w->texts.text + w->tensors.items[2 * i + 1], &t, &whole)) return 0;
        if (whole) continue;
        if (t.end > limit || (w->copies += t.end) > limit) {
            return pytorch_fail(w, "its expanded tensors unfold to more than %zu bytes, \"%.120s\" among them; save "
                                "them without expand()", limit, t.name);
        }
    }
    return 1;
}

// The table from the object that a pickle left, whose storages have found their bytes, in a file of `size` bytes.
static inline int pytorch_make_table(pytorch_t* w, int object, size_t size) {
    safetensors_t* f = w->file;
    const pickle_t* p = &w->pickle;
    if (p->values[object].kind == PICKLE_TENSOR) snprintf(w->name, sizeof w->name, "tensor");
    if (!pytorch_walk(w, object, (int)strlen(w->name), 0)) return 0;
    f->n = w->tensors.count / 2;
    if (f->n == 0 && p->opaque[0] && !p->n_tensors) {
        return pytorch_fail(w, "it holds no tensor that is read here, but %s", p->opaque);
    }
    if (f->n == 0 && p->n_tensors) {
        return pytorch_fail(w, "its %d tensors are inside of objects (%s): a whole module was saved; "
                         "save its state_dict() instead", p->n_tensors, p->opaque[0] ? p->opaque : "a class");
    }
    if (!pytorch_count_copies(w, size + PYTORCH_COPIES)) return 0;
    f->strings = (char*)malloc_check(w->copies + w->texts.length, "the names of a PyTorch file");
    f->tensors = (st_tensor_t*)calloc_check((size_t)f->n, sizeof(st_tensor_t), "a table of tensors");
    f->n_metadata = w->scalars.count / 2;
    f->metadata = (st_metadata_t*)calloc_check((size_t)f->n_metadata, sizeof(st_metadata_t), "a table of metadata");
    char* texts = f->strings + w->copies;
    if (w->texts.length) memcpy(texts, w->texts.text, w->texts.length);
    for (int i = 0; i < f->n_metadata; i++) {
        f->metadata[i].key = texts + w->scalars.items[2 * i];
        f->metadata[i].value = texts + w->scalars.items[2 * i + 1];
    }
    w->room = (unsigned char*)f->strings;
    return pytorch_make_tensors(w, texts);
}

// Sorts the table for lookup. {"a.b": 1, "a": {"b": 2}} gives one name twice: of metadata one is kept, tensors are
// refused.
static inline int pytorch_sort(pytorch_t* w) {
    json_reader_t r;
    safetensors_t* f = w->file;
    int kept = 0;
    memset(&r, 0, sizeof r);
    r.error = w->error;
    r.error_size = w->error_size;
    if (f->n_metadata) qsort(f->metadata, (size_t)f->n_metadata, sizeof(st_metadata_t), st_compare_keys);
    for (int i = 0; i < f->n_metadata; i++) {
        if (kept == 0 || strcmp(f->metadata[i].key, f->metadata[kept - 1].key)) f->metadata[kept++] = f->metadata[i];
    }
    f->n_metadata = kept;
    st_sort(f, &r);
    return !r.failed;
}

// ---------------------------------------------------------------------------------------------------------------------
// The two containers

// The bytes of each storage: stored entries PREFIXdata/KEY
static inline int pytorch_find_storages(pytorch_t* w, const zip_t* z, const char* prefix, int prefix_length) {
    for (int i = 0; i < w->pickle.n_storages; i++) {
        char name[PYTORCH_NAME];
        pickle_storage_t* s = &w->pickle.storages[i];
        int shown = s->key_length < 40 ? s->key_length : 40;
        snprintf(name, sizeof name, "%.*sdata/%.*s", prefix_length, prefix, shown, s->key);
        const zip_entry_t* e = zip_find(z, name);
        if (!e) {
            return pytorch_fail(w, "data.pkl wants the entry \"%.100s\", which is not there", name);
        }
        if (e->method != ZIP_STORED) {
            return pytorch_fail(w, "the entry \"%.100s\" is compressed, and PyTorch compresses none: "
                             "unzip the file and pack it again with zip -0", name);
        }
        s->data = zip_data(z, e, w->error, w->error_size);
        s->bytes = (size_t)e->size;
        if (!s->data) return 0;
    }
    return 1;
}

// The folder of an archive: what stands before "data.pkl" in the name of the entry, with its slash. -1: there is none.
static inline int pytorch_prefix(const zip_t* z, const char** prefix) {
    for (int i = 0; i < z->n; i++) {
        const char* name = z->entries[i].name;
        const char* slash = strchr(name, '/');
        if (!strcmp(slash ? slash + 1 : name, "data.pkl")) {
            *prefix = name;
            return slash ? (int)(slash + 1 - name) : 0;
        }
    }
    return -1;
}

static inline const zip_entry_t* pytorch_entry(const zip_t* z, const char* prefix, int length, const char* name) {
    char text[PYTORCH_NAME];
    snprintf(text, sizeof text, "%.*s%s", length, prefix, name);
    return zip_find(z, text);
}

static inline int pytorch_read_archive(pytorch_t* w, const zip_t* z, unsigned char** text) {
    const char* prefix = "";
    int length = pytorch_prefix(z, &prefix);
    if (length < 0 || length > 300) {
        return pytorch_fail(w, "the zip archive has no data.pkl (its first entry is \"%.80s\"): it is "
                         "no PyTorch file", z->n ? z->entries[0].name : "");
    }
    if (pytorch_entry(z, prefix, length, "constants.pkl")) {
        return pytorch_fail(w, "it is a TorchScript program; save the module's state_dict() instead");
    }
    const zip_entry_t* order = pytorch_entry(z, prefix, length, "byteorder");
    char order_text[8] = "";
    if (order && order->size < sizeof order_text && !zip_read(z, order, order_text, w->error, w->error_size)) return 0;
    if (order && strcmp(order_text, "little")) {
        return pytorch_fail(w, "its byteorder is not \"little\": save it on another machine");
    }
    const zip_entry_t* e = pytorch_entry(z, prefix, length, "data.pkl");
    if (!e || e->size > PICKLE_LIMIT) {
        return pytorch_fail(w, "data.pkl is longer than %d bytes", PICKLE_LIMIT);
    }
    *text = (unsigned char*)malloc_check((size_t)e->size, "a pickle");
    if (!zip_read(z, e, *text, w->error, w->error_size)) return 0;
    int object = pickle_run(&w->pickle, "data.pkl", *text, (size_t)e->size);
    if (object < 0 || !pytorch_find_storages(w, z, prefix, length)) return 0;
    return pytorch_make_table(w, object, z->size);
}

static inline int pytorch_compare_keys(const void* left, const void* right) {
    const pickle_storage_t* a = *(const pickle_storage_t* const*)left;
    const pickle_storage_t* b = *(const pickle_storage_t* const*)right;
    if (a->key_length != b->key_length) return a->key_length < b->key_length ? -1 : 1;
    return memcmp(a->key, b->key, (size_t)a->key_length);
}

// The bytes behind the pickles of the old container: those of each key in the order of the list. `sorted` are all
// storages by key; several may show one.
static inline int pytorch_place_storages(pytorch_t* w, const pickle_value_t* keys, pickle_storage_t** sorted,
                                         const unsigned char* end) {
    const unsigned char* at = w->pickle.at;
    int n = w->pickle.n_storages;
    for (int i = 0; i < keys->count; i++) {
        const pickle_value_t* text = pickle_item(&w->pickle, keys, i);
        pickle_storage_t wanted;
        const pickle_storage_t* key = &wanted;
        memset(&wanted, 0, sizeof wanted);
        wanted.key = text->as.text;
        wanted.key_length = text->count;
        pickle_storage_t** found = NULL;
        if (n && text->kind == PICKLE_TEXT) {
            found = (pickle_storage_t**)bsearch(&key, sorted, (size_t)n, sizeof *sorted, pytorch_compare_keys);
        }
        if (!found || (size_t)(end - at) < 8) {
            return pytorch_fail(w, "storage %d is %s", i,
                                found ? "not there: the file is damaged"
                                : w->pickle.opaque[0] ? "of a type that is unknown here, or the file is damaged"
                                                      : "no tensor's: the file is damaged");
        }
        size_t bytes = st_dtype_info((st_dtype_t)(*found)->dtype).bits / 8, numel = (size_t)file_number(at, 8);
        at += 8;
        if (numel > (size_t)(end - at) / bytes) {
            return pytorch_fail(w, "storage %d has %zu elements, but only %zu bytes follow: the file is "
                             "truncated", i, numel, (size_t)(end - at));
        }
        while (found > sorted && pytorch_compare_keys(found - 1, &key) == 0) found--;
        for (; found < sorted + n && pytorch_compare_keys(found, &key) == 0; found++) {
            pickle_storage_t* s = *found;
            size_t unit = st_dtype_info((st_dtype_t)s->dtype).bits / 8;
            if (s->view_begin > numel * bytes / unit || s->numel > numel * bytes / unit - s->view_begin) continue;
            s->data = at + s->view_begin * unit;
            s->bytes = s->numel * unit;
        }
        at += numel * bytes;
    }
    return 1;
}

static inline int pytorch_read_legacy(pytorch_t* w, const unsigned char* bytes, size_t size) {
    static const unsigned char magic[10] = {0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19};
    pickle_t* p = &w->pickle;
    const unsigned char *end = bytes + size, *at = bytes;
    int values[5]; // magic, protocol, system, object, keys
    for (int i = 0; i < 5; i++) {
        static const char* const names[5] = {"the first pickle (magic number)", "the second pickle (protocol)",
                                             "the third pickle (system)", "the object's pickle",
                                             "the list of storages"};
        values[i] = pickle_run(p, names[i], at, (size_t)(end - at));
        if (values[i] < 0) return 0;
        at = p->at;
        const pickle_value_t* v = &p->values[values[i]];
        if (i == 0 && (v->kind != PICKLE_BIG || v->count != 10 || memcmp(v->as.text, magic, 10))) {
            return pytorch_fail(w, "it is a pickle, but none of torch.save: it has no magic number");
        }
        if (i == 1 && (v->kind != PICKLE_INT || v->as.integer != 1001)) {
            return pytorch_fail(w, "it is of another protocol of torch.save than 1001");
        }
    }
    const pickle_value_t* system = &p->values[values[2]];
    for (int i = 0; system->kind == PICKLE_DICT && i + 1 < system->count; i += 2) {
        const pickle_value_t *key = &p->values[system->as.items[i]], *value = &p->values[system->as.items[i + 1]];
        if (key->kind == PICKLE_TEXT && pickle_is(key->as.text, key->count, "little_endian") && !value->as.integer) {
            return pytorch_fail(w, "it was written on a big-endian machine; save it on another");
        }
    }
    const pickle_value_t* keys = &p->values[values[4]];
    if (keys->kind != PICKLE_LIST) return pytorch_fail(w, "its list of storages is none: it is damaged");
    pickle_storage_t** sorted =
        (pickle_storage_t**)malloc_check((size_t)p->n_storages * sizeof *sorted, "the storages of a PyTorch file");
    for (int i = 0; i < p->n_storages; i++) sorted[i] = &p->storages[i];
    if (p->n_storages) qsort(sorted, (size_t)p->n_storages, sizeof *sorted, pytorch_compare_keys);
    int good = pytorch_place_storages(w, keys, sorted, end);
    free(sorted);
    return good && pytorch_make_table(w, values[3], size);
}

// A whole file that lies in memory and must stay there until safetensors_close. `path` is for messages.
// 1, or 0 with a message; nothing is left to close then.
int pytorch_parse(safetensors_t* f, const unsigned char* bytes, size_t size, const char* path, char* error,
                  size_t error_size) {
    pytorch_t w;
    zip_t z;
    unsigned char* text = NULL;
    int good = 0;
    memset(f, 0, sizeof *f);
    memset(&w, 0, sizeof w);
    f->path = strdup(path);
    w.file = f;
    w.error = error;
    w.error_size = error_size;
    pickle_begin(&w.pickle, error, error_size);
    if (size && bytes[0] == 'P') {
        good = zip_open(&z, bytes, size, error, error_size);
        good = good && pytorch_read_archive(&w, &z, &text) && pytorch_sort(&w);
        zip_close(&z);
    } else {
        good = pytorch_read_legacy(&w, bytes, size) && pytorch_sort(&w);
    }
    if (!good) safetensors_close(f);
    pickle_free(&w.pickle);
    json_text_free(&w.texts);
    free(w.tensors.items);
    free(w.scalars.items);
    free(text);
    return good;
}
