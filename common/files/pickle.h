// pickle.h: the part of Python's pickle that weight files need, as data. Nothing is ever executed.
//
// A pickle is a program for a small machine with a stack and a memo (numbered shelves):
//
//     BINUNICODE 'lr'   pushes a text         GLOBAL 'torch FloatStorage'   pushes a name of a Python object
//     BINFLOAT 1e-4     pushes a number       REDUCE                        pops arguments and a name, "calls" it
//     MARK ... TUPLE    gathers what lies above the mark      BINPUT 3, BINGET 3   to the memo, from the memo
//     BINPERSID         pops a tuple that describes a storage: where the bytes of tensors are
//
// In Python the call is a call, and a hostile file calls os.system. Here it builds a value: a dictionary, a list, a
// tensor's description. What is done with a name is decided as soon as it appears:
//
//   - the names in pickle_names below have a meaning here (dictionaries, tensors, storages, numpy's numbers, ...);
//   - the names that reach out of the program or run code (posix.system, builtins.eval, subprocess.Popen, torch.load):
//     no weight file needs one. Refused, and the message names it: whoever got such a file should know;
//   - every other class or function becomes an opaque object, because training checkpoints hold such (a scheduler, a
//     functools.partial, a callback's state). It is a name and nothing more: no tensor or number is taken from inside.
//     So does a call of the first kind with arguments that have no meaning here (a quantised tensor).
//
// Values are 16 bytes in one array and refer to each other by number, so what a text of N bytes can build is O(N)
// memory; every length is checked against the text. Protocols 2 to 5; of 0 and 1 what lives on in 2.
// (CPython's Lib/pickletools.py describes the operations.)
//
// Left out: big integers (known, without a value), extension codes, buffers outside of the pickle, protocols 0 and 1.
// Look next at common/files/pytorch_file.h, which finds pickles in files and makes tensors of what comes out.
#pragma once
// defines: file_fail, file_number
#include "common/files/file_map.h"
// defines: malloc_check
#include "common/program/log.h"
// defines: st_dtype_t, ST_MAX_DIMENSIONS, st_grow
#include "common/files/safetensors.h"

typedef enum {
    PICKLE_NONE, PICKLE_BOOL, PICKLE_INT, PICKLE_FLOAT, PICKLE_BIG, // BIG: an integer beyond 64 bits, as bytes
    PICKLE_TEXT, PICKLE_BYTES,
    PICKLE_TUPLE, PICKLE_LIST, // lists and sets
    PICKLE_DICT,               // keys and values in turn
    PICKLE_FIELDS,             // the same, of a Namespace: its BUILD brings them
    PICKLE_GLOBAL,             // a name, by its row in pickle_names; -1: a class that is not listed
    PICKLE_NUMPY_TYPE,         // the text of a numpy dtype, "f8"
    PICKLE_STORAGE, PICKLE_TENSOR, // by number
    PICKLE_OPAQUE,
} pickle_kind_t;

typedef struct {
    pickle_kind_t kind;
    int count; // bytes of a text, items of a container
    union {
        int64_t integer; // also the number of a storage, a tensor, a name
        double real;
        const char* text; // (count) not terminated
        int* items;       // (count) values by number
    } as;
} pickle_value_t;

// What the persistent id ('storage', type, key, device, numel[, view]) says.
typedef struct {
    const char* key; // (key_length)
    int key_length;
    int dtype;                 // of st_dtype_t
    size_t numel;              // elements that the pickle promises
    size_t view_begin;         // a view of a storage (files before 2018): its elements begin here
    const unsigned char* data; // set by pytorch_file.h
    size_t bytes;              // that there are
} pickle_storage_t;

typedef struct {
    int storage, dtype, ndim;
    size_t offset, shape[ST_MAX_DIMENSIONS], stride[ST_MAX_DIMENSIONS]; // in elements
} pickle_tensor_t;

typedef struct {
    int* items;
    int count, capacity;
} pickle_ints_t;

typedef struct {
    const char* name; // of the pickle, for messages: "data.pkl"
    const unsigned char *at, *end;
    size_t size;
    pickle_value_t* values;
    pickle_storage_t* storages;
    pickle_tensor_t* tensors;
    int n_values, n_storages, n_tensors;
    pickle_ints_t stack, memo;
    int memoized;    // for MEMOIZE, which numbers shelves itself
    size_t copied;   // values that calls have copied
    char** decoded;  // texts that do not stand in the file as they are
    int n_decoded;
    char opaque[168]; // the first name that became opaque, for messages
    char* error;
    size_t error_size;
    int failed;
} pickle_t;

enum { PICKLE_MARK = -1, PICKLE_LIMIT = 1 << 25 }; // bytes of a pickle; a checkpoint of 10,000 tensors has 3 MB

// ---------------------------------------------------------------------------------------------------------------------
// Names

typedef enum {
    CALL_OPAQUE, CALL_DICT, CALL_FIELDS, CALL_LIST, CALL_NEW, CALL_BYTES,
    CALL_TENSOR, CALL_TENSOR_TYPED, CALL_PARAMETER, CALL_SUBCLASS, CALL_STORAGE, CALL_DTYPE,
    CALL_NUMPY_TYPE, CALL_NUMPY_SCALAR
} pickle_call_t;

typedef struct {
    const char *package, *name;
    pickle_call_t call;
    st_dtype_t dtype;
} pickle_name_t;

static const pickle_name_t pickle_names[] = {
    {"collections", "OrderedDict", CALL_DICT, ST_F32},
    {"collections", "defaultdict", CALL_DICT, ST_F32},
    {"collections", "Counter", CALL_DICT, ST_F32},
    {"builtins", "dict", CALL_DICT, ST_F32},
    {"__builtin__", "dict", CALL_DICT, ST_F32},
    {"argparse", "Namespace", CALL_FIELDS, ST_F32},
    {"types", "SimpleNamespace", CALL_FIELDS, ST_F32},
    {"pytorch_lightning.utilities.parsing", "AttributeDict", CALL_FIELDS, ST_F32},
    {"lightning.pytorch.utilities.parsing", "AttributeDict", CALL_FIELDS, ST_F32},
    {"lightning_fabric.utilities.data", "AttributeDict", CALL_FIELDS, ST_F32},
    {"lightning.fabric.utilities.data", "AttributeDict", CALL_FIELDS, ST_F32},
    {"builtins", "list", CALL_LIST, ST_F32},
    {"__builtin__", "list", CALL_LIST, ST_F32},
    {"builtins", "set", CALL_LIST, ST_F32},
    {"__builtin__", "set", CALL_LIST, ST_F32},
    {"builtins", "frozenset", CALL_LIST, ST_F32},
    {"__builtin__", "frozenset", CALL_LIST, ST_F32},
    {"collections", "deque", CALL_LIST, ST_F32},
    {"builtins", "tuple", CALL_LIST, ST_F32},
    {"torch", "Size", CALL_LIST, ST_F32},
    {"copyreg", "_reconstructor", CALL_NEW, ST_F32},
    {"copy_reg", "_reconstructor", CALL_NEW, ST_F32},
    {"_codecs", "encode", CALL_BYTES, ST_F32},
    {"torch._utils", "_rebuild_tensor", CALL_TENSOR, ST_F32},
    {"torch._utils", "_rebuild_tensor_v2", CALL_TENSOR, ST_F32},
    {"torch._utils", "_rebuild_tensor_v3", CALL_TENSOR_TYPED, ST_F32},
    {"torch._utils", "_rebuild_parameter", CALL_PARAMETER, ST_F32},
    {"torch._utils", "_rebuild_parameter_with_state", CALL_PARAMETER, ST_F32},
    {"torch._tensor", "_rebuild_from_type_v2", CALL_SUBCLASS, ST_F32},
    {"torch", "DoubleStorage", CALL_STORAGE, ST_F64},
    {"torch", "FloatStorage", CALL_STORAGE, ST_F32},
    {"torch", "HalfStorage", CALL_STORAGE, ST_F16},
    {"torch", "BFloat16Storage", CALL_STORAGE, ST_BF16},
    {"torch", "LongStorage", CALL_STORAGE, ST_I64},
    {"torch", "IntStorage", CALL_STORAGE, ST_I32},
    {"torch", "ShortStorage", CALL_STORAGE, ST_I16},
    {"torch", "CharStorage", CALL_STORAGE, ST_I8},
    {"torch", "ByteStorage", CALL_STORAGE, ST_U8},
    {"torch", "BoolStorage", CALL_STORAGE, ST_BOOL},
    {"torch", "ComplexFloatStorage", CALL_STORAGE, ST_C64},
    {"torch", "UntypedStorage", CALL_STORAGE, ST_U8},
    {"torch.storage", "UntypedStorage", CALL_STORAGE, ST_U8},
    {"torch.cuda", "DoubleStorage", CALL_STORAGE, ST_F64},
    {"torch.cuda", "FloatStorage", CALL_STORAGE, ST_F32},
    {"torch.cuda", "HalfStorage", CALL_STORAGE, ST_F16},
    {"torch.cuda", "BFloat16Storage", CALL_STORAGE, ST_BF16},
    {"torch.cuda", "LongStorage", CALL_STORAGE, ST_I64},
    {"torch.cuda", "IntStorage", CALL_STORAGE, ST_I32},
    {"torch.cuda", "ByteStorage", CALL_STORAGE, ST_U8},
    {"torch.cuda", "BoolStorage", CALL_STORAGE, ST_BOOL},
    {"torch", "float64", CALL_DTYPE, ST_F64},
    {"torch", "float32", CALL_DTYPE, ST_F32},
    {"torch", "float16", CALL_DTYPE, ST_F16},
    {"torch", "bfloat16", CALL_DTYPE, ST_BF16},
    {"torch", "int64", CALL_DTYPE, ST_I64},
    {"torch", "int32", CALL_DTYPE, ST_I32},
    {"torch", "int16", CALL_DTYPE, ST_I16},
    {"torch", "int8", CALL_DTYPE, ST_I8},
    {"torch", "uint64", CALL_DTYPE, ST_U64},
    {"torch", "uint32", CALL_DTYPE, ST_U32},
    {"torch", "uint16", CALL_DTYPE, ST_U16},
    {"torch", "uint8", CALL_DTYPE, ST_U8},
    {"torch", "bool", CALL_DTYPE, ST_BOOL},
    {"torch", "complex64", CALL_DTYPE, ST_C64},
    {"torch", "float8_e4m3fn", CALL_DTYPE, ST_F8_E4M3},
    {"torch", "float8_e5m2", CALL_DTYPE, ST_F8_E5M2},
    {"torch", "device", CALL_OPAQUE, ST_F32},
    {"torch.serialization", "_get_layout", CALL_OPAQUE, ST_F32},
    {"numpy", "dtype", CALL_NUMPY_TYPE, ST_F32},
    {"numpy.core.multiarray", "scalar", CALL_NUMPY_SCALAR, ST_F32},
    {"numpy._core.multiarray", "scalar", CALL_NUMPY_SCALAR, ST_F32},
    {"numpy.core._multiarray_umath", "scalar", CALL_NUMPY_SCALAR, ST_F32},
    {"numpy.core.multiarray", "_reconstruct", CALL_OPAQUE, ST_F32},
    {"numpy.core._multiarray_umath", "_reconstruct", CALL_OPAQUE, ST_F32},
    {"numpy._core.multiarray", "_reconstruct", CALL_OPAQUE, ST_F32},
    {"numpy", "ndarray", CALL_OPAQUE, ST_F32},
    {"numpy.core.numeric", "_frombuffer", CALL_OPAQUE, ST_F32},
    {"numpy._core.numeric", "_frombuffer", CALL_OPAQUE, ST_F32},
    {"numpy", "float64", CALL_OPAQUE, ST_F32},
    {"numpy", "float32", CALL_OPAQUE, ST_F32},
    {"numpy", "float16", CALL_OPAQUE, ST_F32},
    {"numpy", "int64", CALL_OPAQUE, ST_F32},
    {"numpy", "int32", CALL_OPAQUE, ST_F32},
    {"numpy", "uint8", CALL_OPAQUE, ST_F32},
    {"builtins", "int", CALL_OPAQUE, ST_F32},
    {"builtins", "float", CALL_OPAQUE, ST_F32},
    {"builtins", "bool", CALL_OPAQUE, ST_F32},
    {"builtins", "str", CALL_OPAQUE, ST_F32},
    {"builtins", "bytes", CALL_OPAQUE, ST_F32},
    {"builtins", "complex", CALL_OPAQUE, ST_F32},
    {"builtins", "object", CALL_OPAQUE, ST_F32},
    {"builtins", "slice", CALL_OPAQUE, ST_F32},
    {"builtins", "range", CALL_OPAQUE, ST_F32},
    {"__builtin__", "object", CALL_OPAQUE, ST_F32},
    {"__builtin__", "long", CALL_OPAQUE, ST_F32},
    {"__builtin__", "complex", CALL_OPAQUE, ST_F32},
    {"datetime", "datetime", CALL_OPAQUE, ST_F32},
    {"datetime", "timedelta", CALL_OPAQUE, ST_F32},
    {"datetime", "date", CALL_OPAQUE, ST_F32},
};
enum { PICKLE_NAMES = sizeof pickle_names / sizeof pickle_names[0] };

// Python's own modules that reach outside of the program or run code, and such names in others.
static const char* const pickle_refused_modules[] = {
    "os", "posix", "nt", "subprocess", "shutil", "socket", "importlib", "runpy", "ctypes", "_ctypes", "code", "codeop",
    "pty", "webbrowser", "http", "urllib", "urllib2", "requests", "ftplib", "smtplib", "telnetlib", "socketserver",
    "xmlrpc", "imp", "zipimport", "pip", "setuptools", "distutils", "commands", "popen2", "pdb", "bdb", "timeit", NULL};

typedef struct { const char *package, *name; } pickle_refused_t;
static const pickle_refused_t pickle_refused[] = {
    {"builtins", "eval"}, {"builtins", "exec"}, {"builtins", "compile"}, {"builtins", "open"},
    {"builtins", "__import__"}, {"builtins", "input"}, {"builtins", "breakpoint"}, {"__builtin__", "eval"},
    {"__builtin__", "exec"}, {"__builtin__", "execfile"}, {"__builtin__", "compile"}, {"__builtin__", "open"},
    {"__builtin__", "file"}, {"__builtin__", "__import__"}, {"__builtin__", "input"}, {"__builtin__", "raw_input"},
    {"sys", "exit"}, {"torch", "load"}, {"torch.hub", "load"}, {"torch.hub", "load_state_dict_from_url"},
    {"torch.serialization", "load"}, {"numpy", "load"}, {"io", "open"}, {"_io", "open"}, {"pickle", "load"},
    {"pickle", "loads"}, {"_pickle", "loads"}, {"cPickle", "loads"}, {"marshal", "loads"}, {"dill", "loads"},
    {"cloudpickle", "loads"}, {"joblib", "load"}, {"pandas", "read_pickle"}};
enum { PICKLE_REFUSED = sizeof pickle_refused / sizeof pickle_refused[0] };

__attribute__((format(printf, 2, 3))) static inline void pickle_fail(pickle_t* p, const char* format, ...) {
    char reason[512];
    va_list args;
    if (p->failed) return;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    file_fail(p->error, p->error_size, "%s %s", p->name, reason);
    p->failed = 1;
}

static inline int pickle_is(const char* text, int length, const char* wanted) {
    return (size_t)length == strlen(wanted) && !memcmp(text, wanted, (size_t)length);
}

// The row of a name, -1 where it is not listed. One that reaches out ends the reading.
static inline int pickle_find_name(pickle_t* p, const char* package, int package_length, const char* name, int length) {
    for (int i = 0; i < PICKLE_NAMES; i++) {
        const pickle_name_t* n = &pickle_names[i];
        if (pickle_is(name, length, n->name) && pickle_is(package, package_length, n->package)) return i;
    }
    const char* dot = (const char*)memchr(package, '.', (size_t)package_length);
    int first = dot ? (int)(dot - package) : package_length;
    int refused = 0;
    for (int i = 0; pickle_refused_modules[i]; i++) refused |= pickle_is(package, first, pickle_refused_modules[i]);
    for (int i = 0; i < PICKLE_REFUSED; i++) {
        const pickle_refused_t* r = &pickle_refused[i];
        refused |= pickle_is(package, package_length, r->package) && pickle_is(name, length, r->name);
    }
    int shown = package_length < 80 ? package_length : 80, name_shown = length < 80 ? length : 80;
    if (refused) {
        pickle_fail(p, "calls %.*s.%.*s, which no weight file needs: refused; nothing of it was executed", shown,
                    package, name_shown, name);
    } else if (!p->opaque[0]) {
        snprintf(p->opaque, sizeof p->opaque, "%.*s.%.*s", shown, package, name_shown, name);
    }
    return -1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Values and the stack

static inline void pickle_add(pickle_ints_t* list, int value) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 16;
        list->items = (int*)realloc(list->items, (size_t)list->capacity * sizeof(int));
        if (!list->items) fatal("no memory for a pickle of %d values; free memory and start again", list->count);
    }
    list->items[list->count++] = value;
}

static inline int pickle_value(pickle_t* p, pickle_kind_t kind, int64_t integer) {
    p->values = (pickle_value_t*)st_grow(p->values, p->n_values, sizeof(pickle_value_t));
    pickle_value_t* v = &p->values[p->n_values];
    memset(v, 0, sizeof *v);
    v->kind = kind;
    v->as.integer = integer;
    return p->n_values++;
}

static inline int pickle_text(pickle_t* p, pickle_kind_t kind, const char* text, size_t length) {
    int v = pickle_value(p, kind, 0);
    p->values[v].as.text = text;
    p->values[v].count = (int)length;
    return v;
}

// A container is never filled in place but for lists and dictionaries, which grow by doubling.
static inline int pickle_container(pickle_t* p, pickle_kind_t kind, const int* items, int count) {
    int v = pickle_value(p, kind, 0);
    p->values[v].as.items = NULL;
    for (int i = 0; i < count; i++) {
        pickle_value_t* c = &p->values[v];
        c->as.items = (int*)st_grow(c->as.items, c->count, sizeof(int));
        c->as.items[c->count++] = items[i];
    }
    return v;
}

static inline void pickle_append(pickle_t* p, int container, int item) {
    pickle_value_t* c = &p->values[container];
    c->as.items = (int*)st_grow(c->as.items, c->count, sizeof(int));
    c->as.items[c->count++] = item;
}

static inline int pickle_is_container(const pickle_value_t* v) {
    return v->kind == PICKLE_TUPLE || v->kind == PICKLE_LIST || v->kind == PICKLE_DICT || v->kind == PICKLE_FIELDS;
}

static inline void pickle_push(pickle_t* p, int value) { pickle_add(&p->stack, value); }

// The value on top; value 0 (None) after an error.
static inline int pickle_top(pickle_t* p) {
    if (p->stack.count == 0 || p->stack.items[p->stack.count - 1] == PICKLE_MARK) {
        pickle_fail(p, "takes a value that is not on the stack: it is damaged");
        return 0;
    }
    return p->stack.items[p->stack.count - 1];
}

static inline int pickle_pop(pickle_t* p) {
    int value = pickle_top(p);
    if (!p->failed) p->stack.count--;
    return value;
}

// Where what lies above the last mark begins; the mark is one below.
static inline int pickle_mark(pickle_t* p) {
    int at = p->stack.count;
    while (at > 0 && p->stack.items[at - 1] != PICKLE_MARK) at--;
    if (at == 0) pickle_fail(p, "wants a mark that is not on the stack: it is damaged");
    return at;
}

// Item i of a tuple or list, or NULL.
static inline const pickle_value_t* pickle_item(const pickle_t* p, const pickle_value_t* tuple, int i) {
    if ((tuple->kind != PICKLE_TUPLE && tuple->kind != PICKLE_LIST) || i >= tuple->count) return NULL;
    return &p->values[tuple->as.items[i]];
}

// Is item i there and of this kind?
static inline int pickle_has(const pickle_t* p, const pickle_value_t* tuple, int i, pickle_kind_t kind) {
    const pickle_value_t* v = pickle_item(p, tuple, i);
    return v && v->kind == kind;
}

static inline void pickle_free(pickle_t* p) {
    for (int i = 0; i < p->n_values; i++) {
        if (pickle_is_container(&p->values[i])) free(p->values[i].as.items);
    }
    for (int i = 0; i < p->n_decoded; i++) free(p->decoded[i]);
    free(p->values);
    free(p->storages);
    free(p->tensors);
    free(p->stack.items);
    free(p->memo.items);
    free(p->decoded);
    memset(p, 0, sizeof *p);
}

// ---------------------------------------------------------------------------------------------------------------------
// Calls

// A tuple of non-negative integers into `out`; how many, or -1.
static inline int pickle_sizes(const pickle_t* p, const pickle_value_t* tuple, size_t* out) { // (ST_MAX_DIMENSIONS)
    if (!tuple || (tuple->kind != PICKLE_TUPLE && tuple->kind != PICKLE_LIST)) return -1;
    if (tuple->count > ST_MAX_DIMENSIONS) return -1;
    for (int i = 0; i < tuple->count; i++) {
        const pickle_value_t* v = pickle_item(p, tuple, i);
        if (v->kind != PICKLE_INT || v->as.integer < 0) return -1;
        out[i] = (size_t)v->as.integer;
    }
    return tuple->count;
}

// An object of which nothing is known here, but that it was made of this name.
static inline int pickle_opaque(pickle_t* p, const char* what) {
    if (!p->opaque[0]) snprintf(p->opaque, sizeof p->opaque, "%s", what);
    return pickle_value(p, PICKLE_OPAQUE, 0);
}

// (storage, offset, shape, stride, requires gradient, hooks[, type][, {"neg": True}]): a tensor.
static inline int pickle_call_tensor(pickle_t* p, const pickle_value_t* args, int typed) {
    pickle_tensor_t t;
    memset(&t, 0, sizeof t);
    int good = pickle_has(p, args, 0, PICKLE_STORAGE) && pickle_has(p, args, 1, PICKLE_INT);
    if (good) {
        t.storage = (int)pickle_item(p, args, 0)->as.integer;
        t.dtype = p->storages[t.storage].dtype;
        t.offset = (size_t)pickle_item(p, args, 1)->as.integer;
        t.ndim = pickle_sizes(p, pickle_item(p, args, 2), t.shape);
        good = t.ndim >= 0 && t.ndim == pickle_sizes(p, pickle_item(p, args, 3), t.stride);
        good &= pickle_item(p, args, 1)->as.integer >= 0;
    }
    if (good && typed) {
        good = pickle_has(p, args, 6, PICKLE_GLOBAL) && pickle_item(p, args, 6)->as.integer >= 0;
        const pickle_name_t* name = good ? &pickle_names[pickle_item(p, args, 6)->as.integer] : NULL;
        good = name && name->call == CALL_DTYPE;
        if (good) t.dtype = name->dtype;
    }
    if (!good) return pickle_opaque(p, "a tensor of a type, of dimensions or strides that are unknown here");
    const pickle_value_t* lazy = pickle_item(p, args, typed ? 7 : 6);
    if (lazy && lazy->kind == PICKLE_DICT && lazy->count) {
        return pickle_opaque(p, "a conjugate or negative view, whose values are not those of its storage");
    }
    p->tensors = (pickle_tensor_t*)st_grow(p->tensors, p->n_tensors, sizeof t);
    p->tensors[p->n_tensors] = t;
    return pickle_value(p, PICKLE_TENSOR, p->n_tensors++);
}

// numpy.core.multiarray.scalar(dtype, bytes), little-endian
static inline int pickle_call_scalar(pickle_t* p, const pickle_value_t* args) {
    int v = pickle_value(p, PICKLE_OPAQUE, 0);
    if (!pickle_has(p, args, 0, PICKLE_NUMPY_TYPE) || !pickle_has(p, args, 1, PICKLE_BYTES)) return v;
    const pickle_value_t *type = pickle_item(p, args, 0), *bytes = pickle_item(p, args, 1);
    pickle_value_t* out = &p->values[v];
    double real = 0;
    float single = 0;
    if (type->count != 2 || bytes->count != type->as.text[1] - '0' || bytes->count > 8) return v;
    switch (type->as.text[0]) {
    case 'f':
        if (bytes->count != 4 && bytes->count != 8) return v;
        if (bytes->count == 8) memcpy(&real, bytes->as.text, 8);
        else memcpy(&single, bytes->as.text, 4);
        out->kind = PICKLE_FLOAT;
        out->as.real = bytes->count == 8 ? real : (double)single;
        break;
    case 'i':
    case 'u':
        out->as.integer = (int64_t)file_number((const unsigned char*)bytes->as.text, bytes->count);
        if (type->as.text[0] == 'i' && bytes->count > 0 && bytes->count < 8) {
            int64_t sign = (int64_t)1 << (8 * bytes->count - 1);
            out->as.integer = (out->as.integer ^ sign) - sign;
        }
        out->kind = PICKLE_INT;
        break;
    case 'b':
        out->kind = PICKLE_BOOL;
        out->as.integer = bytes->count && bytes->as.text[0];
        break;
    }
    return v;
}

// Copies of what stands in the memo could grow beyond all bounds; all together may be as long as the pickle.
static inline int pickle_may_copy(pickle_t* p, int count) {
    p->copied += (size_t)count;
    if (p->copied > p->size) pickle_fail(p, "copies values again and again: it is damaged or hostile");
    return !p->failed;
}

// Latin-1 text that Python 3 writes as UTF-8 and turns back by _codecs.encode: bytes, in protocol 2.
static inline int pickle_call_bytes(pickle_t* p, const pickle_value_t* args) {
    if (!pickle_has(p, args, 0, PICKLE_TEXT)) return pickle_value(p, PICKLE_OPAQUE, 0);
    const pickle_value_t* text = pickle_item(p, args, 0);
    if (!pickle_may_copy(p, text->count)) return 0;
    char* out = (char*)malloc_check((size_t)text->count, "a pickle's bytes");
    size_t n = 0;
    for (int i = 0; i < text->count; i++) {
        unsigned char c = (unsigned char)text->as.text[i];
        int two = (c & 0xFE) == 0xC2 && i + 1 < text->count; // U+0080 to U+00FF
        out[n++] = two ? (char)(c << 6 | (text->as.text[++i] & 0x3F)) : (char)c;
    }
    p->decoded = (char**)st_grow(p->decoded, p->n_decoded, sizeof(char*));
    p->decoded[p->n_decoded++] = out;
    return pickle_text(p, PICKLE_BYTES, out, n);
}

// A dictionary from nothing or a list of pairs. (From another dictionary it would be a copy: that itself does.)
static inline int pickle_call_dict(pickle_t* p, const pickle_value_t* args, pickle_kind_t kind) {
    const pickle_value_t* from = args->count ? pickle_item(p, args, args->count - 1) : NULL;
    if (from && from->kind == PICKLE_DICT) return args->as.items[args->count - 1];
    int pairs = from && from->kind == PICKLE_LIST ? from->count : 0;
    const int* items = pairs ? from->as.items : NULL; // `from` moves when values are added, its items do not
    int v = pickle_container(p, kind, NULL, 0);
    if (!pickle_may_copy(p, pairs)) return 0;
    for (int i = 0; i < pairs; i++) {
        const pickle_value_t* pair = &p->values[items[i]];
        if ((pair->kind != PICKLE_TUPLE && pair->kind != PICKLE_LIST) || pair->count != 2) continue;
        pickle_append(p, v, pair->as.items[0]);
        pickle_append(p, v, pair->as.items[1]);
    }
    return v;
}

// name(*args) as a value. `args` is copied because the array of values moves when it grows.
static inline int pickle_call(pickle_t* p, int callee, int arguments) {
    pickle_value_t name = p->values[callee], args = p->values[arguments];
    if (name.kind == PICKLE_OPAQUE || (name.kind == PICKLE_GLOBAL && name.as.integer < 0)) {
        return pickle_value(p, PICKLE_OPAQUE, 0);
    }
    if (name.kind != PICKLE_GLOBAL) {
        pickle_fail(p, "calls something that has no name: it is damaged");
        return 0;
    }
    const pickle_value_t* first = pickle_item(p, &args, 0);
    if (args.kind != PICKLE_TUPLE) return pickle_opaque(p, pickle_names[name.as.integer].name);
    switch (pickle_names[name.as.integer].call) {
    case CALL_DICT: return pickle_call_dict(p, &args, PICKLE_DICT);
    case CALL_FIELDS: return pickle_call_dict(p, &args, PICKLE_FIELDS);
    case CALL_LIST: { // of what there is in a tuple, list or set
        int n = first && (first->kind == PICKLE_TUPLE || first->kind == PICKLE_LIST) ? first->count : 0;
        const int* items = n ? first->as.items : NULL; // `first` moves when values are added, its items do not
        return pickle_may_copy(p, n) ? pickle_container(p, PICKLE_LIST, items, n) : 0;
    }
    case CALL_NEW: // (class, base, state)
        if (!first || first->kind != PICKLE_GLOBAL) break;
        if (first->as.integer >= 0 && pickle_names[first->as.integer].call == CALL_FIELDS) {
            return pickle_container(p, PICKLE_FIELDS, NULL, 0);
        }
        return pickle_value(p, PICKLE_OPAQUE, 0);
    case CALL_BYTES: return pickle_call_bytes(p, &args);
    case CALL_TENSOR: return pickle_call_tensor(p, &args, 0);
    case CALL_TENSOR_TYPED: return pickle_call_tensor(p, &args, 1);
    case CALL_PARAMETER: // (tensor, requires gradient, hooks)
        if (first && first->kind == PICKLE_TENSOR) return args.as.items[0];
        break;
    case CALL_SUBCLASS: // (function, class, arguments, state)
        if (pickle_has(p, &args, 0, PICKLE_GLOBAL) && first->as.integer >= 0 && pickle_has(p, &args, 2, PICKLE_TUPLE)) {
            pickle_call_t call = pickle_names[first->as.integer].call;
            const pickle_value_t* inner = pickle_item(p, &args, 2);
            if (call == CALL_TENSOR || call == CALL_TENSOR_TYPED) {
                return pickle_call_tensor(p, inner, call == CALL_TENSOR_TYPED);
            }
        }
        break;
    case CALL_NUMPY_TYPE:
        if (!first || first->kind != PICKLE_TEXT) break;
        return pickle_text(p, PICKLE_NUMPY_TYPE, first->as.text, (size_t)first->count);
    case CALL_NUMPY_SCALAR: return pickle_call_scalar(p, &args);
    case CALL_OPAQUE: return pickle_value(p, PICKLE_OPAQUE, 0);
    case CALL_STORAGE:
    case CALL_DTYPE: break;
    }
    return pickle_opaque(p, pickle_names[name.as.integer].name);
}

// ('storage', type, key, device, numel[, view]), or ('module', class, ...) around a module's class in old files
static inline int pickle_persistent(pickle_t* p, int id) {
    const pickle_value_t* tuple = &p->values[id];
    pickle_storage_t s;
    memset(&s, 0, sizeof s);
    const pickle_value_t* kind = pickle_item(p, tuple, 0);
    if (kind && kind->kind == PICKLE_TEXT && pickle_is(kind->as.text, kind->count, "module") && tuple->count > 1) {
        return tuple->as.items[1];
    }
    int good = kind && kind->kind == PICKLE_TEXT && pickle_is(kind->as.text, kind->count, "storage") &&
               pickle_has(p, tuple, 1, PICKLE_GLOBAL) && pickle_has(p, tuple, 2, PICKLE_TEXT) &&
               pickle_has(p, tuple, 4, PICKLE_INT) && pickle_item(p, tuple, 4)->as.integer >= 0;
    if (!good) {
        pickle_fail(p, "has a persistent id that describes no storage: it is damaged, or of another program");
        return 0;
    }
    int64_t row = pickle_item(p, tuple, 1)->as.integer;
    if (row < 0 || pickle_names[row].call != CALL_STORAGE) { // its tensors are opaque too
        return pickle_opaque(p, row < 0 ? "a storage" : pickle_names[row].name);
    }
    s.dtype = (int)pickle_names[row].dtype;
    s.key = pickle_item(p, tuple, 2)->as.text;
    s.key_length = pickle_item(p, tuple, 2)->count;
    s.numel = (size_t)pickle_item(p, tuple, 4)->as.integer;
    const pickle_value_t* view = pickle_item(p, tuple, 5); // (key, first element, elements)
    if (view && view->kind == PICKLE_TUPLE) {
        int fits = pickle_has(p, view, 1, PICKLE_INT) && pickle_has(p, view, 2, PICKLE_INT);
        int64_t begin = fits ? pickle_item(p, view, 1)->as.integer : -1;
        int64_t count = fits ? pickle_item(p, view, 2)->as.integer : -1;
        if (begin < 0 || count < 0 || (size_t)begin > s.numel || (size_t)count > s.numel - (size_t)begin) {
            pickle_fail(p, "has a view that lies outside of its storage");
            return 0;
        }
        s.view_begin = (size_t)begin;
        s.numel = (size_t)count;
    }
    p->storages = (pickle_storage_t*)st_grow(p->storages, p->n_storages, sizeof s);
    p->storages[p->n_storages] = s;
    return pickle_value(p, PICKLE_STORAGE, p->n_storages++);
}

// BUILD: gives an object its state. What hangs on a dictionary (PyTorch's "_metadata"), on a tensor, or on an opaque
// object is dropped.
static inline void pickle_build(pickle_t* p, int object, int state) {
    if (p->values[object].kind != PICKLE_FIELDS || p->values[state].kind != PICKLE_DICT) return;
    if (!pickle_may_copy(p, p->values[state].count)) return;
    for (int i = 0; i < p->values[state].count; i++) pickle_append(p, object, p->values[state].as.items[i]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The machine

// The next `n` bytes of the text; NULL after an error.
static inline const unsigned char* pickle_take(pickle_t* p, uint64_t n) {
    if (p->failed) return NULL;
    if (n > (uint64_t)(p->end - p->at)) {
        pickle_fail(p, "ends in the middle: it is truncated");
        return NULL;
    }
    const unsigned char* at = p->at;
    p->at += n;
    return at;
}

static inline uint64_t pickle_number(pickle_t* p, int bytes) {
    const unsigned char* at = pickle_take(p, (uint64_t)bytes);
    return at ? file_number(at, bytes) : 0;
}

// A text whose length stands before it, in `bytes` bytes.
static inline void pickle_push_text(pickle_t* p, pickle_kind_t kind, int bytes) {
    uint64_t length = pickle_number(p, bytes);
    const unsigned char* text = pickle_take(p, length);
    if (text) pickle_push(p, pickle_text(p, kind, (const char*)text, (size_t)length));
}

// An integer of any length, two's complement.
static inline void pickle_push_long(pickle_t* p, int bytes) {
    uint64_t length = pickle_number(p, bytes);
    const unsigned char* at = pickle_take(p, length);
    if (!at) return;
    if (length > 8) {
        pickle_push(p, pickle_text(p, PICKLE_BIG, (const char*)at, (size_t)length));
        return;
    }
    uint64_t value = file_number(at, (int)length);
    if (length > 0 && length < 8 && at[length - 1] & 0x80) value |= ~(uint64_t)0 << 8 * length;
    pickle_push(p, pickle_value(p, PICKLE_INT, (int64_t)value));
}

// INT: a line, as Python 2 writes what has more than 32 bits; 00 and 01 are False and True
static inline void pickle_push_line(pickle_t* p) {
    const char* line = (const char*)p->at;
    const char* end = (const char*)memchr(p->at, '\n', (size_t)(p->end - p->at));
    char text[24], *rest;
    if (!end) {
        pickle_fail(p, "ends in the middle: it is truncated");
        return;
    }
    snprintf(text, sizeof text, "%.*s", (int)(end - line < 23 ? end - line : 23), line);
    p->at = (const unsigned char*)end + 1;
    long long value = strtoll(text, &rest, 10);
    if (rest == text || *rest) pickle_fail(p, "has \"%s\" as a number: it is damaged", text);
    else if (text[0] == '0' && text[1]) pickle_push(p, value ? 1 : 2);
    else pickle_push(p, pickle_value(p, PICKLE_INT, value));
}

// GLOBAL: two lines, module and name
static inline void pickle_push_global(pickle_t* p) {
    const char* package = (const char*)p->at;
    const char* line = (const char*)memchr(p->at, '\n', (size_t)(p->end - p->at));
    const char* name = line ? line + 1 : NULL;
    const char* end = line ? (const char*)memchr(name, '\n', (size_t)((const char*)p->end - name)) : NULL;
    if (!end) {
        pickle_fail(p, "ends in the middle: it is truncated");
        return;
    }
    p->at = (const unsigned char*)end + 1;
    int row = pickle_find_name(p, package, (int)(line - package), name, (int)(end - name));
    pickle_push(p, pickle_value(p, PICKLE_GLOBAL, row));
}

static inline void pickle_stack_global(pickle_t* p) {
    pickle_value_t name = p->values[pickle_pop(p)], package = p->values[pickle_pop(p)];
    if (!p->failed && (name.kind != PICKLE_TEXT || package.kind != PICKLE_TEXT)) {
        pickle_fail(p, "calls something that has no name: it is damaged");
    }
    if (p->failed) return;
    int row = pickle_find_name(p, package.as.text, package.count, name.as.text, name.count);
    pickle_push(p, pickle_value(p, PICKLE_GLOBAL, row));
}

static inline void pickle_put(pickle_t* p, uint64_t shelf) {
    int value = pickle_top(p);
    if (shelf >= p->size) pickle_fail(p, "has a memo larger than itself: it is damaged");
    if (p->failed) return;
    while ((uint64_t)p->memo.count <= shelf) pickle_add(&p->memo, PICKLE_MARK);
    if (p->memo.items[shelf] == PICKLE_MARK) p->memoized++;
    p->memo.items[shelf] = value;
}

static inline void pickle_get(pickle_t* p, uint64_t shelf) {
    if (!p->failed && (shelf >= (uint64_t)p->memo.count || p->memo.items[shelf] == PICKLE_MARK)) {
        pickle_fail(p, "takes a value that is not in its memo: it is damaged");
    }
    if (!p->failed) pickle_push(p, p->memo.items[shelf]);
}

// What lies above the last mark becomes one container.
static inline void pickle_gather(pickle_t* p, pickle_kind_t kind) {
    int from = pickle_mark(p);
    if (!p->failed && kind == PICKLE_DICT && (p->stack.count - from) % 2) pickle_fail(p, "has a key without a value");
    if (p->failed) return;
    int v = pickle_container(p, kind, p->stack.items + from, p->stack.count - from);
    p->stack.count = from - 1;
    pickle_push(p, v);
}

// The topmost n values become a tuple.
static inline void pickle_push_tuple(pickle_t* p, int n) {
    int items[3] = {0, 0, 0};
    for (int i = n; i--;) items[i] = pickle_pop(p);
    if (!p->failed) pickle_push(p, pickle_container(p, PICKLE_TUPLE, items, n));
}

// Values from `from` on are added to the list or dictionary below (`below` the mark, where there is one).
static inline void pickle_extend(pickle_t* p, int from, int below, pickle_kind_t kind) {
    if (!p->failed && (below < 0 || p->stack.items[below] == PICKLE_MARK)) {
        pickle_fail(p, "takes a value that is not on the stack: it is damaged");
    }
    if (!p->failed && kind == PICKLE_DICT && (p->stack.count - from) % 2) pickle_fail(p, "has a key without a value");
    if (p->failed) return;
    int container = p->stack.items[below];
    pickle_kind_t found = p->values[container].kind;
    int fits = found == kind || (found == PICKLE_FIELDS && kind == PICKLE_DICT);
    if (!fits && found != PICKLE_OPAQUE) {
        pickle_fail(p, "adds to something that is no container: it is damaged");
        return;
    }
    for (int i = from; i < p->stack.count && fits; i++) pickle_append(p, container, p->stack.items[i]);
    p->stack.count = below + 1;
}

static inline void pickle_extend_marked(pickle_t* p, pickle_kind_t kind) {
    int from = pickle_mark(p);
    pickle_extend(p, from, from - 2, kind);
}

// One operation; 0 at the last one (STOP) and after an error.
static inline int pickle_step(pickle_t* p) {
    const unsigned char* operation = pickle_take(p, 1);
    if (!operation) return 0;
    int from, a, b;
    switch (*operation) {
    case 0x80: // PROTO
        a = (int)pickle_number(p, 1);
        if (!p->failed && (a < 2 || a > 5)) pickle_fail(p, "is of protocol %d; 2 to 5 are read here", a);
        break;
    case 0x95: pickle_take(p, 8); break; // FRAME
    case '.': return 0;
    case '(': pickle_push(p, PICKLE_MARK); break;
    case '0': // POP
        if (p->stack.count == 0) pickle_fail(p, "takes a value that is not on the stack: it is damaged");
        else p->stack.count--;
        break;
    case '1': // POP_MARK
        from = pickle_mark(p);
        if (!p->failed) p->stack.count = from - 1;
        break;
    case '2': pickle_push(p, pickle_top(p)); break;
    case 'N': pickle_push(p, 0); break;
    case 0x88: pickle_push(p, 1); break; // NEWTRUE
    case 0x89: pickle_push(p, 2); break; // NEWFALSE
    case 'J': pickle_push(p, pickle_value(p, PICKLE_INT, (int32_t)pickle_number(p, 4))); break;
    case 'K': pickle_push(p, pickle_value(p, PICKLE_INT, (int64_t)pickle_number(p, 1))); break;
    case 'M': pickle_push(p, pickle_value(p, PICKLE_INT, (int64_t)pickle_number(p, 2))); break;
    case 'I': pickle_push_line(p); break;
    case 0x8A: pickle_push_long(p, 1); break;
    case 0x8B: pickle_push_long(p, 4); break;
    case 'G': { // BINFLOAT, the one number here that is big-endian
        uint64_t bits = __builtin_bswap64(pickle_number(p, 8));
        pickle_push(p, pickle_value(p, PICKLE_FLOAT, (int64_t)bits));
        break;
    }
    case 'X': pickle_push_text(p, PICKLE_TEXT, 4); break;
    case 0x8C: pickle_push_text(p, PICKLE_TEXT, 1); break;
    case 0x8D: pickle_push_text(p, PICKLE_TEXT, 8); break;
    case 'T': pickle_push_text(p, PICKLE_TEXT, 4); break; // str of Python 2
    case 'U': pickle_push_text(p, PICKLE_TEXT, 1); break;
    case 'B': pickle_push_text(p, PICKLE_BYTES, 4); break;
    case 'C': pickle_push_text(p, PICKLE_BYTES, 1); break;
    case 0x8E: pickle_push_text(p, PICKLE_BYTES, 8); break;
    case 0x96: pickle_push_text(p, PICKLE_BYTES, 8); break;
    case ']': case 0x8F: pickle_push(p, pickle_container(p, PICKLE_LIST, NULL, 0)); break; // EMPTY_LIST, EMPTY_SET
    case 'l': case 0x91: pickle_gather(p, PICKLE_LIST); break;                             // LIST, FROZENSET
    case 'a': pickle_extend(p, p->stack.count - 1, p->stack.count - 2, PICKLE_LIST); break;
    case 'e': case 0x90: pickle_extend_marked(p, PICKLE_LIST); break; // APPENDS, ADDITEMS
    case ')': pickle_push_tuple(p, 0); break;
    case 't': pickle_gather(p, PICKLE_TUPLE); break;
    case 0x85: pickle_push_tuple(p, 1); break;
    case 0x86: pickle_push_tuple(p, 2); break;
    case 0x87: pickle_push_tuple(p, 3); break;
    case '}': pickle_push(p, pickle_container(p, PICKLE_DICT, NULL, 0)); break;
    case 'd': pickle_gather(p, PICKLE_DICT); break;
    case 's': pickle_extend(p, p->stack.count - 2, p->stack.count - 3, PICKLE_DICT); break;
    case 'u': pickle_extend_marked(p, PICKLE_DICT); break;
    case 'q': pickle_put(p, pickle_number(p, 1)); break;
    case 'r': pickle_put(p, pickle_number(p, 4)); break;
    case 0x94: pickle_put(p, (uint64_t)p->memoized); break;
    case 'h': pickle_get(p, pickle_number(p, 1)); break;
    case 'j': pickle_get(p, pickle_number(p, 4)); break;
    case 'c': pickle_push_global(p); break;
    case 0x93: pickle_stack_global(p); break;
    case 'R': case 0x81: case 0x92: // REDUCE, NEWOBJ, NEWOBJ_EX with keyword arguments, which only opaque classes have
        if (*operation == 0x92) pickle_pop(p);
        b = pickle_pop(p), a = pickle_pop(p);
        if (!p->failed) a = pickle_call(p, a, b);
        if (!p->failed) pickle_push(p, a);
        break;
    case 'b': // BUILD
        b = pickle_pop(p), a = pickle_top(p);
        if (!p->failed) pickle_build(p, a, b);
        break;
    case 'Q': // BINPERSID
        a = pickle_pop(p);
        if (!p->failed) a = pickle_persistent(p, a);
        if (!p->failed) pickle_push(p, a);
        break;
    default:
        pickle_fail(p, "has operation 0x%02x at byte %zu, which no weight file needs: it is damaged", *operation,
                    p->size - (size_t)(p->end - p->at) - 1);
    }
    return !p->failed;
}

// Begins with no values but the constants. One pickle_t can run several pickles, whose values stay.
static inline void pickle_begin(pickle_t* p, char* error, size_t error_size) {
    memset(p, 0, sizeof *p);
    p->error = error;
    p->error_size = error_size;
    pickle_value(p, PICKLE_NONE, 0);
    pickle_value(p, PICKLE_BOOL, 1);
    pickle_value(p, PICKLE_BOOL, 0);
}

// Runs the pickle that begins at `bytes`. The value it leaves, or -1 with a message; p->at is behind it then.
static inline int pickle_run(pickle_t* p, const char* name, const unsigned char* bytes, size_t size) {
    p->name = name;
    p->at = bytes;
    p->size = size < (size_t)PICKLE_LIMIT ? size : (size_t)PICKLE_LIMIT;
    p->end = bytes + p->size;
    p->stack.count = p->memo.count = p->memoized = 0;
    p->copied = 0;
    while (pickle_step(p)) {}
    int value = pickle_pop(p);
    return p->failed ? -1 : value;
}
