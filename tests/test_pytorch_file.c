// Other people's files: PyTorch's as several versions wrote them, numpy's, hostile and damaged ones. The files are
// those of dev/reference/make_pytorch_fixtures.py, whose formulas are repeated here.

// defines: inspect_file, inspect_values, inspect_stats_t
#include "common/files/inspect.h"
// defines: npz_write_arrays, npz_values, npz_string
#include "common/files/npz_writer.h"
// defines: tensor_file_open, tensor_file_parse
#include "common/files/tensor_file.h"
// defines: temporary_*
#include "tests/temporary.h"
// defines: test_begin, test_case, test_end_case, test_finish, check, check_error
#include "tests/test.h"

#define FIXTURES "tests/fixtures/"

// ---------------------------------------------------------------------------------------------------------------------
// What versions of PyTorch wrote

// The tensor `name` must have this type and shape (text) and these values.
static void check_tensor(const safetensors_t* f, const char* name, st_dtype_t dtype, const char* shape,
                         const double* values) {
    char text[256];
    const st_tensor_t* t = safetensors_find(f, name);
    check(t != NULL, name);
    if (!t) return;
    check(t->dtype == dtype, name);
    if (strcmp(st_shape_text(t, text, sizeof text), shape)) printf("     %s is %s\n", name, text);
    check(!strcmp(text, shape), shape);
    check(t->end - t->begin == t->numel * st_dtype_info(dtype).bits / 8, "bytes");
    for (size_t i = 0; i < t->numel; i++) {
        check_error(name, fabs(st_value(dtype, t->data + i * st_dtype_info(dtype).bits / 8) - values[i]), 0);
    }
}

static void check_metadata(const safetensors_t* f, const char* key, const char* value) {
    const char* found = safetensors_metadata(f, key);
    if (!found || strcmp(found, value)) printf("     %s is %s\n", key, found ? found : "missing");
    check(found && !strcmp(found, value), value);
}

// The tensors that all versions have, behind `prefix`.
static void check_tensors(const safetensors_t* f, const char* prefix) {
    static const struct { const char* name; st_dtype_t dtype; const char* shape; double values[12]; } all[] = {
        {"w", ST_F32, "[3, 4]", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
        {"same", ST_F32, "[3, 4]", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
        {"transposed", ST_F32, "[4, 3]", {0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}},
        {"cut", ST_F32, "[2, 2]", {5, 6, 9, 10}},
        {"tail", ST_F32, "[6]", {4, 5, 6, 7, 8, 9}},
        {"every_third", ST_F32, "[4]", {0, 3, 6, 9}},
        {"expanded", ST_F32, "[1, 1]", {1}},
        {"empty", ST_F32, "[0, 3]", {0}},
        {"scalar", ST_F32, "[]", {2.5}},
        {"f64", ST_F64, "[1]", {1 / 3.0}},
        {"f16", ST_F16, "[2]", {1.5, -2.25}},
        {"i64", ST_I64, "[2]", {-5, 1099511627776.0}},
        {"i32", ST_I32, "[2]", {-7, 8}},
        {"i16", ST_I16, "[2]", {-300, 300}},
        {"i8", ST_I8, "[2]", {-1, 2}},
        {"u8", ST_U8, "[2]", {0, 255}},
        {"bf16", ST_BF16, "[2]", {1.5, -3}},
        {"bool", ST_BOOL, "[2]", {1, 0}},
        {"u16", ST_U16, "[2]", {1, 65535}}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, all[i].name);
        int later = !strcmp(all[i].name, "bf16") || !strcmp(all[i].name, "bool") || !strcmp(all[i].name, "u16");
        if (!later || safetensors_find(f, name)) check_tensor(f, name, all[i].dtype, all[i].shape, all[i].values);
    }
}

static void test_versions(void) {
    static const struct { const char* file; int tensors; } files[] = {
        {"pytorch_1.0.pt", 16}, {"pytorch_1.5.pt", 18}, {"pytorch_1.5_zip.pt", 18}, {"pytorch_1.12.pt", 18},
        {"pytorch_2.15.pt", 19}, {"pytorch_2.15_protocol4.pt", 19}, {"pytorch_2.15_legacy.pt", 19}};
    static const double weight[6] = {0, 1, 2, 3, 4, 5}, bias[3] = {7, 8, 9}, ones[2] = {1, 1}, zeros[2] = {0, 0};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char name[128], path[256];
        safetensors_t f;
        int tensors = 0;
        snprintf(name, sizeof name, "a training checkpoint: %s", files[i].file);
        if (!test_case(name)) continue;
        snprintf(path, sizeof path, FIXTURES "%s", files[i].file);
        tensor_file_open_or_die(&f, path);
        for (int k = 0; k < f.n; k++) tensors += !strncmp(f.tensors[k].name, "model.", 6);
        check(tensors == files[i].tensors, "number of tensors below model.");
        check(!strcmp(f.tensors[0].name, "model.w") || i < 4, "order of the dictionary");
        check_tensors(&f, "model.");
        check_tensor(&f, "ema.weight", ST_F32, "[3, 2]", weight);
        check_tensor(&f, "ema.bias", ST_F32, "[3]", bias);
        check_tensor(&f, "parameter", ST_F32, "[2]", ones);
        check_tensor(&f, "nested.5.x", ST_F32, "[1]", ones);
        check_tensor(&f, "list.0", ST_F32, "[2]", zeros);
        check(safetensors_metadata(&f, "random") == NULL, "numpy's random state is no metadata");
        check_metadata(&f, "args.lr", "0.0002");
        check_metadata(&f, "args.model", "LightningDiT-XL/1");
        check_metadata(&f, "args.qk", "True");
        check_metadata(&f, "epoch", "7");
        check_metadata(&f, "f8", "0.25");
        check_metadata(&f, "f4", "1.5");
        check_metadata(&f, "i8", "-3");
        check_metadata(&f, "opt.param_groups.0.lr", "0.001");
        const st_tensor_t *w = safetensors_find(&f, "model.w"), *same = safetensors_find(&f, "model.same");
        const st_tensor_t* turned = safetensors_find(&f, "model.transposed");
        const unsigned char *map = (const unsigned char*)f.map, *end = map + f.map_size;
        check(w->data == same->data && w->data >= map && w->data + 48 <= end, "one storage, in the map");
        check(turned->data < map || turned->data >= end, "a transposed matrix is a copy");
        safetensors_close(&f);
        test_end_case();
    }
}

// `file` must be refused with a message that has these texts.
static void check_refused(const char* file, const char* a, const char* b) {
    char error[1280] = "";
    safetensors_t f;
    check(!tensor_file_open(&f, file, error, sizeof error), file);
    if (!strstr(error, a) || (b && !strstr(error, b))) printf("     %s: %s\n", file, error);
    check(strstr(error, a) && (!b || strstr(error, b)), a);
}

static void test_other_objects(void) {
    static const double four[4] = {0, 1, 2, 3};
    safetensors_t f;
    if (test_case("tensors alone, in the old container by protocol 4")) {
        tensor_file_open_or_die(&f, FIXTURES "pytorch_2.15_legacy_protocol4.pt");
        check(f.n == 19, "19 tensors");
        check_tensors(&f, "");
        safetensors_close(&f);
        test_end_case();
    }
    if (test_case("classes of pytorch-lightning and omegaconf: fields, and objects that stay closed")) {
        tensor_file_open_or_die(&f, FIXTURES "pytorch_2.15_lightning.pt");
        check(f.n == 1, "the tensor inside of an object is not taken");
        check_tensor(&f, "state_dict.conv.weight", ST_F32, "[1, 1, 2, 2]", four);
        check_metadata(&f, "global_step", "400");
        check_metadata(&f, "hyper_parameters.embed_dim", "32");
        check_metadata(&f, "hyper_parameters.ddconfig.z_channels", "32");
        check_metadata(&f, "pytorch-lightning_version", "1.9.5");
        safetensors_close(&f);
        test_end_case();
    }
    if (test_case("refused: a hostile pickle, a whole module")) {
        check_refused(FIXTURES "pytorch_2.15_hostile.pt",
                      "data.pkl calls posix.system, which no weight file needs: refused; nothing of it was executed",
                      NULL);
        check(access("hostile_pickle_was_executed", F_OK) != 0, "nothing was executed");
        check_refused(FIXTURES "pytorch_2.15_module.pt", "torch.nn.modules.container.Sequential", "state_dict()");
        test_end_case();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Pickles that no PyTorch writes

typedef struct {
    char bytes[8192];
    size_t length;
} text_t;

static void put(text_t* t, const char* bytes, size_t length) {
    memcpy(t->bytes + t->length, bytes, length);
    t->length += length;
}
#define PUT(t, literal) put(t, literal, sizeof(literal) - 1)

// The old container around the operations of an object, one storage "a" of 6 floats behind it.
static void put_container(text_t* t, const char* object, size_t length) {
    float values[6] = {0, 1, 2, 3, 4, 5};
    t->length = 0;
    PUT(t, "\x80\2\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19.\x80\2M\xE9\3.\x80\2}.\x80\2");
    put(t, object, length);
    PUT(t, ".\x80\2]U\1aa.\6\0\0\0\0\0\0\0");
    put(t, (const char*)values, sizeof values);
}

// tensor = _rebuild_tensor_v2(storage of 6 floats, offset, (a, b), strides (c, d)), each one byte
#define STORAGE "(U\7storagectorch\nFloatStorage\nU\1aU\3cpuK\6NtQ"
#define TENSOR(offset, a, b, c, d)                                                                                     \
    "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE "K" offset "K" a "K" b "\x86K" c "K" d "\x86\x89}tR"
// tensor = _rebuild_tensor(view of `count` floats from the third on, 1, (2), (1))
#define VIEW(count)                                                                                                    \
    "ctorch._utils\n_rebuild_tensor\n((U\7storagectorch\nFloatStorage\nU\1aU\3cpuK\6(U\1vK\2K" count "ttQ" \
    "K\1K\2\x85K\1\x85tR"

// The object must be refused with this text.
static void check_object(const char* object, size_t length, const char* message) {
    char error[1280] = "";
    text_t t;
    safetensors_t f;
    put_container(&t, object, length);
    check(!tensor_file_parse(&f, (const unsigned char*)t.bytes, t.length, "object", error, sizeof error), message);
    if (!strstr(error, message)) printf("     said: %s\n", error);
    check(strstr(error, message) != NULL, message);
}
#define REFUSE(object, message) check_object(object, sizeof(object) - 1, message)

// The object must open and hold this one tensor.
static void check_accepted(const char* object, size_t length, const char* name, const char* shape,
                           const double* values) {
    char error[1280] = "";
    text_t t;
    safetensors_t f;
    put_container(&t, object, length);
    int good = tensor_file_parse(&f, (const unsigned char*)t.bytes, t.length, "object", error, sizeof error);
    check(good, error);
    if (!good) return;
    check(f.n == 1, "one tensor");
    check_tensor(&f, name, ST_F32, shape, values);
    safetensors_close(&f);
}
#define ACCEPT(object, name, shape, values) check_accepted(object, sizeof(object) - 1, name, shape, values)
#define W TENSOR("\0", "\2", "\3", "\3", "\1")

static void test_objects(void) {
    static const double six[6] = {0, 3, 1, 4, 2, 5};
    if (test_case("a container made by hand; tensors are checked against their storages")) {
        text_t t;
        safetensors_t f;
        char error[1280] = "";
        put_container(&t, TENSOR("\0", "\3", "\2", "\1", "\3"), sizeof(TENSOR("\0", "\3", "\2", "\1", "\3")) - 1);
        int good = tensor_file_parse(&f, (const unsigned char*)t.bytes, t.length, "object", error, sizeof error);
        check(good, error);
        if (good) check_tensor(&f, "tensor", ST_F32, "[3, 2]", six);
        safetensors_close(&f);
        REFUSE(TENSOR("\1", "\3", "\2", "\1", "\3"), "needs more than the 24 bytes of its storage \"a\"");
        REFUSE(TENSOR("\0", "\3", "\3", "\2", "\1"), "needs more than the 24 bytes"); // the last is beyond
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE
               "K\0\x8A\x08\0\0\0\0\0\0\0\x40\x8A\x08\0\0\0\0\0\0\0\x40\x86K\1K\1\x86\x89}tR", "needs more than");
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE
               "K\0K\2\x85\x8A\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F\x85\x89}tR", "needs more than");
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE "K\0K\1\x85K\1\x85\x89}}U\3neg\x88stR", "negative view");
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE "J\xFF\xFF\xFF\xFFK\1\x85K\1\x85\x89}tR", "unknown here");
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE
               "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t\x89}tR", "unknown here"); // nine
        REFUSE("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE // a file of 200 bytes that would be a terabyte
               "K\0\x8A\5\0\0\0\0\x40K\1\x86K\0K\0\x86\x89}tR", "unfold to more than");
        test_end_case();
    }
    if (test_case("a view of a storage, as files before 2018 have them")) {
        static const double view[2] = {3, 4};
        text_t t;
        safetensors_t f;
        char error[1280] = "";
        put_container(&t, VIEW("\3"), sizeof(VIEW("\3")) - 1);
        int good = tensor_file_parse(&f, (const unsigned char*)t.bytes, t.length, "object", error, sizeof error);
        check(good, error);
        if (good) check_tensor(&f, "tensor", ST_F32, "[2]", view);
        safetensors_close(&f);
        REFUSE(VIEW("\2"), "needs more than the 8 bytes");
        REFUSE(VIEW("\5"), "outside of its storage");
        test_end_case();
    }
    if (test_case("refused: functions and modules that reach outside")) {
        REFUSE("cposix\nsystem\nU\2ls\x85R", "calls posix.system, which no weight file needs");
        REFUSE("\x8C\5posix\x8C\6system\x93", "calls posix.system");
        REFUSE("c__builtin__\neval\nU\1""1\x85R", "calls __builtin__.eval");
        REFUSE("cbuiltins\nexec\n", "calls builtins.exec");
        REFUSE("csubprocess\nPopen\n", "calls subprocess.Popen");
        REFUSE("cos.path\nThing\n", "calls os.path.Thing");
        REFUSE("ctorch\nload\n", "calls torch.load");
        REFUSE("ctorch.hub\nload_state_dict_from_url\n", "calls torch.hub.load_state_dict_from_url");
        REFUSE("cnumpy\nload\n", "calls numpy.load");
        REFUSE("cposix\nsys\x1B[2J\n", "sys?[2J"); // nothing for the terminal
        test_end_case();
    }
    if (test_case("tensors that are expanded, or overlap")) {
        static const double ones[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
        static const double windows[12] = {0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5};
        ACCEPT(TENSOR("\1", "\3", "\3", "\0", "\0"), "tensor", "[3, 3]", ones); // 9 elements out of one
        ACCEPT(TENSOR("\0", "\4", "\3", "\1", "\1"), "tensor", "[4, 3]", windows);
        test_end_case();
    }
    if (test_case("what is never executed is skipped: objects beside weights, a dictionary that holds itself")) {
        static const double six[6] = {0, 1, 2, 3, 4, 5};
        ACCEPT("}(U\1w" W "U\6losses" "ccollections\ndeque\n)K\3\x86R(K\1K\2e" "u", "w", "[2, 3]", six);
        ACCEPT("}(U\1wccollections\ndeque\n)K\3\x86R(" W "eu", "w.0", "[2, 3]", six);
        ACCEPT("}(U\1w" W "U\1pcfunctools\npartial\nctorch.optim.adamw\nAdamW\n\x85R(ctorch.optim.adamw\nAdamW\n)}"
               "U\2lrK\1sNtbu", "w", "[2, 3]", six);
        ACCEPT("}(U\1w" W "U\1fcmy.script\nloss_function\nU\1gcbuiltins\ngetattr\ncmy.script\nThing\nU\1m\x86R"
               "U\1ecmy.script\nThing.method\nU\1rcre\n_compile\nU\1xK\0\x86Ru", "w", "[2, 3]", six);
        ACCEPT("}(U\1w" W "U\1qctorch._utils\n_rebuild_qtensor\n)RU\1pctorch._utils\n_rebuild_parameter\nNN\x86Ru",
               "w", "[2, 3]", six);
        ACCEPT("}(U\1w" W "U\1n" "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE "K\0K\1\x85K\1\x85\x89}}U\3neg\x88stRu",
               "w", "[2, 3]", six);
        ACCEPT("}(U\1w" W "U\4seedI1099511627776\nU\4flagI01\nu", "w", "[2, 3]", six); // Python 2
        ACCEPT("}q\0(U\1w" W "U\4selfh\0U\4list]q\1h\1au", "w", "[2, 3]", six);
        test_end_case();
    }
    if (test_case("refused: endless, damaged and foreign pickles")) {
        REFUSE("K", "it is damaged"); // the object takes the STOP as its number
        REFUSE("h\7", "not in its memo");
        REFUSE("t", "wants a mark");
        REFUSE("0", "not on the stack");
        REFUSE("(0", "not on the stack");
        REFUSE("}U\1as", "not on the stack");
        REFUSE("}(U\1au", "a key without a value");
        REFUSE("K\1K\2a", "no container");
        REFUSE("K\1r\xFF\xFF\xFF\xFF", "a memo larger than itself");
        REFUSE("F1\n", "operation 0x46");
        REFUSE("I1x\n", "as a number");
        REFUSE("U\1aQ", "persistent id");
        REFUSE("(U\7storagectorch\nQInt8Storage\nU\1aU\3cpuK\6NtQ", "of a type that is unknown here");
        test_end_case();
    }
    if (test_case("refused: names that say nothing or the same twice")) {
        char laughs[2048] = STORAGE "0]q";
        size_t n = sizeof(STORAGE "0]q"); // 60 lists, each holds the one before twice
        for (int i = 0; i < 60; i++) n += (size_t)snprintf(laughs + n, sizeof laughs - n, "](h%ch%ceq%c", i, i, i + 1);
        check_object(laughs, n, "has no end");
        REFUSE("}(U\3a.b" TENSOR("\0", "\1", "\1", "\1", "\1") "U\1a}U\1b" TENSOR("\1", "\1", "\1", "\1", "\1") "su",
               "\"a.b\" stands there twice");
        REFUSE("}U\2a\0" TENSOR("\0", "\1", "\1", "\1", "\1") "s", "inside of objects");
        test_end_case();
    }
}

static unsigned char* read_file(const char* path, size_t* size) {
    FILE* file = fopen(path, "rb");
    if (!file) return NULL;
    unsigned char* bytes = (unsigned char*)malloc(1 << 20);
    *size = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

// Sets the CRC-32s of the directory to 0, "not computed", so that damage reaches what is behind them.
static void forget_checksums(unsigned char* bytes, size_t size) {
    for (size_t i = 0; i + 46 < size; i++) {
        if (zip_is(bytes + i, 1, 2)) memset(bytes + i + 16, 0, 4);
    }
}

static void test_kinds(void) {
    char path[TEMPORARY_PATH], tar[600];
    if (!test_case("refused by name: numpy, tar, a web page, a pointer of Git LFS, another byte order")) return;
    memset(tar, 0, sizeof tar);
    memcpy(tar + 257, "ustar", 5);
    temporary_write("a", "<!DOCTYPE html>", 15);
    check_refused(temporary_path(path, "a"), "web page", NULL);
    temporary_write("a", "version https://git-lfs.github.com/spec/v1\n", 43);
    check_refused(temporary_path(path, "a"), "Git LFS", NULL);
    temporary_write("a", tar, sizeof tar);
    check_refused(temporary_path(path, "a"), "tar file", NULL);
    temporary_write("a", "\x93NUMPY\1\0", 8);
    check_refused(temporary_path(path, "a"), "array of numpy", NULL);
    temporary_write("a", "\x80\4K\1.", 5);
    check_refused(temporary_path(path, "a"), "no magic number", NULL);
    temporary_write("a", "PK\3\4 and then nothing of a zip archive", 37);
    check_refused(temporary_path(path, "a"), "the file is truncated", NULL);
    check_refused(FIXTURES "numpy_stored.npz", "no data.pkl", "arr_0.npy");
    size_t size;
    unsigned char* bytes = read_file(FIXTURES "pytorch_2.15_lightning.pt", &size);
    forget_checksums(bytes, size);
    for (size_t i = 0; i + 6 < size; i++) {
        if (!memcmp(bytes + i, "little", 6)) memcpy(bytes + i, "bigbig", 6);
    }
    temporary_write("a", bytes, size);
    check_refused(temporary_path(path, "a"), "byteorder", NULL);
    free(bytes);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// numpy

static void check_array(const npz_reader_t* r, const char* name, size_t rows, const double* values, size_t n) {
    double found[64];
    const npz_array_t* a = npz_need(r, name);
    check(a->numel == n && npz_rows(a) == rows, name);
    for (size_t i = 0; i < 64; i++) found[i] = NAN;
    npz_read_doubles(a, found);
    for (size_t i = 0; i < n; i++) check_error(name, fabs(found[i] - values[i]), 0);
}

static void check_text(const npz_reader_t* r, const char* name, const char* wanted) {
    char* text = npz_read_text(npz_need(r, name));
    check(text && !strcmp(text, wanted), wanted);
    free(text);
}

static void test_numpy(const char* file, int mapped) {
    char name[128];
    double images[60];
    static const double labels[4] = {-5, 5, 15, 25}, mu[3] = {0, 0.25, 0.5}, sigma[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    static const double f4[2] = {1.5, -2.5}, f2[2] = {0.5, 0x1p-24}, i4[2] = {-9, 9}, n[1] = {50000}, one[1] = {2.5};
    static const double ones[3] = {1, 1, 1};
    snprintf(name, sizeof name, "numpy: types, shapes, rows in any order: %s", file);
    if (!test_case(name)) return;
    npz_reader_t r;
    npz_open_or_die(&r, file);
    for (int i = 0; i < 60; i++) images[i] = i * 7 % 256;
    check(r.n == 17, "17 arrays");
    check_array(&r, "arr_0", 4, images, 60);
    check_array(&r, "arr_1", 4, labels, 4);
    check_array(&r, "mu", 3, mu, 3);
    check_array(&r, "sigma", 3, sigma, 9);
    check_array(&r, "f4", 2, f4, 2);
    check_array(&r, "f2", 2, f2, 2);
    check_array(&r, "i4", 2, i4, 2);
    check_array(&r, "n", 1, n, 1);
    check_array(&r, "one", 1, one, 1);
    check_array(&r, "empty", 0, NULL, 0);
    check_array(&r, "fortran_1d", 3, ones, 3);
    check_text(&r, "text", "h\xC3\xA9, \xE2\x82\xAC");
    check_text(&r, "bytes", "abc");
    check(!npz_find(&r, "fortran")->readable && !npz_find(&r, "object")->readable, "order, objects");
    check(!npz_find(&r, "big_endian")->readable && !npz_find(&r, "structure")->readable, "byte order, structures");
    check((npz_find(&r, "arr_0")->data != NULL) == mapped, "stored arrays are mapped");
    static const size_t order[7] = {2, 3, 0, 1, 1, 3, 0};
    for (int i = 0; i < 7; i++) {
        unsigned char row[15];
        memset(row, 255, sizeof row);
        npz_read_rows(npz_find(&r, "arr_0"), row, order[i], 1);
        for (size_t k = 0; k < 15; k++) check(row[k] == (order[i] * 15 + k) * 7 % 256, "a row");
        check_error("label", fabs(npz_read_number(npz_find(&r, "arr_1"), order[i]) - labels[order[i]]), 0);
    }
    npz_close(&r);
    test_end_case();
}

static void need_fortran(const char* path) {
    npz_reader_t r;
    npz_open_or_die(&r, path);
    npz_need(&r, "fortran");
}

static void need_nothing(const char* path) {
    npz_reader_t r;
    npz_open_or_die(&r, path);
    npz_need(&r, "sigma_s");
}

static void test_numpy_files(void) {
    static const double first[3] = {1, 2, 3};
    char path[TEMPORARY_PATH], error[512];
    npz_reader_t r;
    if (test_case("numpy: versions 1 to 3, an .npy file, CRC-32, refusals")) {
        npz_open_or_die(&r, FIXTURES "numpy_versions.npz");
        double values[3];
        for (int v = 0; v < 3; v++) {
            npz_read_doubles(&r.arrays[v], values);
            for (int i = 0; i < 3; i++) check_error("versions", fabs(values[i] - first[i] - v), 0);
        }
        npz_close(&r);
        size_t size;
        unsigned char* bytes = read_file(FIXTURES "numpy_stored.npz", &size);
        check(npz_parse(&r, bytes, size, "x", error, sizeof error), error);
        const npz_array_t* mu = npz_find(&r, "mu");
        temporary_write("mu.npy", mu->data - mu->header, mu->header + 24);
        bytes[mu->data - bytes] ^= 1; // a value changes, and its CRC-32 does not
        check(!npz_try_rows(mu, values, 0, 3, error, sizeof error) && strstr(error, "CRC-32"), "damage shows");
        npz_close(&r);
        free(bytes);
        npz_open_or_die(&r, temporary_path(path, "mu.npy"));
        npz_read_doubles(npz_need(&r, "arr_0"), values);
        check_error("npy", fabs(values[1] - 0.25) + fabs(values[2] - 0.5), 0);
        npz_close(&r);
        check_message(need_fortran, FIXTURES "numpy_stored.npz", "\"fortran\" is <f8 (2, 3), Fortran", "save it again");
        check_message(need_nothing, FIXTURES "numpy_stored.npz", "no array \"sigma_s\"", "17 arrays");
        int opened = npz_open(&r, FIXTURES "pytorch_2.15.pt", error, sizeof error);
        check(!opened && strstr(error, "no array of numpy"), error);
        test_end_case();
    }
    if (test_case("numpy: statistics that we write, with 64-bit sizes")) {
        static const char* const protocol = "FID \xE2\x82\xAC \xF0\x9F\x98\x80";
        double sigma[6], n = 50000;
        for (int i = 0; i < 6; i++) sigma[i] = test_normal();
        npz_item_t items[5] = {npz_values("mu", first, 1, 3, 0), npz_values("sigma", sigma, 2, 2, 3),
                               npz_values("n", &n, 0, 0, 0), npz_string("protocol", protocol),
                               npz_string("none", "")};
        npz_write_arrays(temporary_path(path, "statistics.npz"), items, 5);
        npz_open_or_die(&r, path);
        check(r.n == 5 && r.arrays[0].entry->size == 128 + 24, "arrays and sizes");
        check_array(&r, "mu", 3, first, 3);
        check_array(&r, "sigma", 2, sigma, 6);
        check_array(&r, "n", 1, &n, 1);
        check_text(&r, "protocol", protocol);
        check_text(&r, "none", "");
        for (int i = 0; i < r.n; i++) check(zip_check(&r.zip, r.arrays[i].entry, error, sizeof error), error);
        npz_close(&r);
        test_end_case();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The list of a file

static void inspect_all(const char* path) {
    if (!freopen(path, "wb", stdout)) exit(2);
    inspect_file(FIXTURES "pytorch_2.15.pt");
    inspect_file(FIXTURES "pytorch_1.0.pt");
    inspect_file(FIXTURES "numpy_compressed.npz");
    inspect_file(FIXTURES "crop.safetensors");
    char damaged[TEMPORARY_PATH];
    exit(inspect_file(temporary_path(damaged, "damaged.pt")) ? 0 : 3);
}

static void test_inspect(void) {
    enum { N = 200003 };
    // A child must not inherit threads, so this comes before the sums.
    if (test_case("inspect: tables of all kinds of files, and of a damaged one")) {
        char path[TEMPORARY_PATH];
        size_t size, at;
        unsigned char* bytes = read_file(FIXTURES "pytorch_2.15.pt", &size);
        static const float eleven = 11;
        for (at = 0; memcmp(bytes + at, &eleven, 4); at++) {}
        bytes[at] ^= 1;
        temporary_write("damaged.pt", bytes, size);
        free(bytes);
        check(temporary_run_child(inspect_all, temporary_path(path, "table")) == 3, "the damaged file is reported");
        char* said = temporary_read("table", NULL);
        static const char* const wanted[] = {
            "args.model = LightningDiT-XL/1\n", "model.u16 ", "30 tensors, 105 values", "CRC-32: 32 entries agree\n",
            "ema.bias                F32    [3]                            8     0.8165", "PyTorch, before 1.6\n",
            "numpy, zip\n",
            "arr_0       |u1    (4, 5, 3)                  108.4      69.08          0        252\n", "(2, 3), Fortran",
            "17 arrays", "crop.safetensors: safetensors\n", "damaged: the zip entry \"pytorch_2.15/data/0\" is damaged",
            "1 of 32 zip entries are damaged"};
        for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) check(said && strstr(said, wanted[i]), wanted[i]);
        free(said);
        test_end_case();
    }
    if (test_case("inspect: mean and deviation over pieces, values that are not finite")) {
        double* values = (double*)malloc(N * sizeof(double));
        double sum = 0, squares = 0;
        for (int i = 0; i < N; i++) sum += values[i] = 1000 + test_normal();
        for (int i = 0; i < N; i++) squares += (values[i] - sum / N) * (values[i] - sum / N);
        inspect_stats_t s = inspect_values(ST_F64, (const unsigned char*)values, N);
        check_error("mean", fabs(s.mean / (sum / N) - 1), 1e-14);
        check_error("deviation", fabs(sqrt(s.squares / s.n) / sqrt(squares / N) - 1), 1e-11);
        values[7] = NAN, values[N - 1] = INFINITY;
        s = inspect_values(ST_F64, (const unsigned char*)values, N);
        check(s.others == 2 && s.n == N - 2 && isfinite(s.mean) && isfinite(s.max), "two are not finite");
        free(values);
        test_end_case();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Damaged files

enum { MUTATIONS = 100000, SEEDS = 9, SEED_BYTES = 16384 };

static uint32_t draw(uint32_t n) {
    uint64_t x = test_state.random += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    return (uint32_t)((x >> 32) % n);
}

// One to four changes: a byte, a number, a cut end, a piece copied from elsewhere in the file or from another.
static size_t mutate(unsigned char* bytes, size_t size, const unsigned char* other, size_t other_size) {
    static const unsigned char telling[12] = {0, 1, 0x7F, 0x80, 0xFF, '.', '(', 'R', 'Q', 'u', 'c', 't'};
    for (uint32_t k = 1 + draw(4); k--;) {
        size_t at = draw((uint32_t)size), from, n;
        switch (draw(6)) {
        case 0: bytes[at] ^= (unsigned char)(1 << draw(8)); break;
        case 1: bytes[at] = (unsigned char)draw(256); break;
        case 2: bytes[at] = telling[draw(12)]; break;
        case 3:
            n = 1 + draw(8);
            for (size_t i = at; i < size && i < at + n; i++) bytes[i] = draw(2) ? 0xFF : 0;
            break;
        case 4:
            from = draw((uint32_t)other_size);
            n = 1 + draw(64);
            for (size_t i = 0; i < n && at + i < size && from + i < other_size; i++) bytes[at + i] = other[from + i];
            break;
        case 5:
            if (draw(8) == 0) size = 1 + at;
            break;
        }
    }
    return size;
}

// Opens the bytes in all ways and looks at all that they give. 1 where they opened.
static int try_open(const unsigned char* bytes, size_t size, double* sum) {
    char error[512];
    safetensors_t f;
    npz_reader_t r;
    int good = tensor_file_parse(&f, bytes, size, "mutated", error, sizeof error);
    for (int i = 0; good && i < f.n; i++) {
        const st_tensor_t* t = &f.tensors[i];
        for (size_t k = 0; k < t->end - t->begin; k++) *sum += t->data[k];
        *sum += (double)strlen(t->name);
    }
    if (good) safetensors_close(&f);
    if (bytes[0] != 'P' || !npz_parse(&r, bytes, size, "mutated", error, sizeof error)) return good;
    for (int i = 0; i < r.n; i++) {
        const npz_array_t* a = &r.arrays[i];
        unsigned char row[4096];
        size_t row_bytes = npz_row_values(a) * a->bytes;
        for (size_t k = 0; a->readable && row_bytes && row_bytes <= sizeof row && k < npz_rows(a) && k < 16; k++) {
            if (!npz_try_rows(a, row, k, 1, error, sizeof error)) break;
            *sum += row[0] + row[row_bytes - 1];
        }
    }
    npz_close(&r);
    return 1;
}

static void test_mutations(void) {
    static const char* const files[SEEDS] = {
        "pytorch_2.15_legacy_protocol4.pt", "pytorch_2.15_lightning.pt", "pytorch_2.15_hostile.pt", "pytorch_1.0.pt",
        "numpy_stored.npz", "numpy_compressed.npz", "numpy_versions.npz", "pytorch_2.15_module.pt",
        "pytorch_1.5_zip.pt"};
    unsigned char* seeds[SEEDS];
    size_t sizes[SEEDS];
    int opened = 0;
    double sum = 0;
    if (!test_case("100,000 damaged files: refused or read, nothing else")) return;
    for (int i = 0; i < SEEDS; i++) {
        char path[256];
        snprintf(path, sizeof path, FIXTURES "%s", files[i]);
        seeds[i] = read_file(path, &sizes[i]);
        check(seeds[i] && sizes[i] <= SEED_BYTES, files[i]);
    }
    for (int k = 0; k < MUTATIONS; k++) {
        int i = (int)draw(SEEDS), other = (int)draw(SEEDS);
        unsigned char work[SEED_BYTES];
        memcpy(work, seeds[i], sizes[i]);
        if (k & 1) forget_checksums(work, sizes[i]);
        size_t size = mutate(work, sizes[i], seeds[other], sizes[other]);
        unsigned char* exact = (unsigned char*)malloc(size); // so that a byte too many is seen by a sanitizer
        memcpy(exact, work, size);
        opened += try_open(exact, size, &sum);
        free(exact);
    }
    printf("     %d opened, %d refused\n", opened, MUTATIONS - opened);
    check(opened > MUTATIONS / 20 && opened < MUTATIONS && isfinite(sum), "some open, some do not");
    check(access("hostile_pickle_was_executed", F_OK) != 0, "nothing was executed");
    for (int i = 0; i < SEEDS; i++) free(seeds[i]);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_versions();
    test_other_objects();
    test_objects();
    test_kinds();
    test_numpy(FIXTURES "numpy_stored.npz", 1);
    test_numpy(FIXTURES "numpy_compressed.npz", 0);
    test_numpy_files();
    test_inspect();
    test_mutations();
    temporary_end();
    return test_finish();
}
