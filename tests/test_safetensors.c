// test_safetensors.c: the safetensors reader and writer.
//
// Values, names and metadata must come back as they were written; each way to damage a file must be refused with a
// message that names the field; and no failure of a write (full disk, unwritable folder, a killed program) may harm the
// file that was there. 100,000 mutated files are parsed from buffers of exactly their size, so that a build with
// -fsanitize=address,undefined sees every step beyond an end.
#include <ctype.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

// defines: safetensors_t, safetensors_*
#include "common/files/safetensors.h"
// defines: st_writer_t, safetensors_writer_*
#include "common/files/safetensors_writer.h"
// defines: test_begin, test_case, check, check_error, test_uniform, test_normal
#include "tests/test.h"

// ------------------------------------------------------------------------------------------------------------------
// Helpers: a folder for files, whole files in memory, children that are expected to die

typedef struct {
    char folder[256];
    char path[300];      // folder/model.safetensors
    char temporary[304]; // path.tmp
} place_t;

place_t make_place(void) {
    place_t place;
    const char* base = getenv("TMPDIR");
    if (!base || strlen(base) > 200) base = "/tmp";
    snprintf(place.folder, sizeof place.folder, "%s/test_safetensors_XXXXXX", base);
    if (!mkdtemp(place.folder)) fatal("%s: no folder can be made for the test; set TMPDIR", place.folder);
    snprintf(place.path, sizeof place.path, "%.255s/model.safetensors", place.folder);
    snprintf(place.temporary, sizeof place.temporary, "%.299s.tmp", place.path);
    return place;
}

void remove_place(const place_t* place) {
    unlink(place->temporary);
    unlink(place->path);
    check(rmdir(place->folder) == 0, "the folder holds no other files");
}

int exists(const char* path) { return access(path, F_OK) == 0; }

unsigned char* read_file(const char* path, size_t* size) {
    FILE* file = fopen(path, "rb");
    if (!file) fatal("%s: the test cannot read it", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char* bytes = (unsigned char*)malloc_check(*size, "a file");
    if (fread(bytes, 1, *size, file) != *size) fatal("%s: the test cannot read it", path);
    fclose(file);
    return bytes;
}

void write_file(const char* path, const unsigned char* bytes, size_t size) {
    FILE* file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) fatal("%s: the test cannot write it", path);
}

// A file in memory from a header text and a number of data bytes; the buffer has exactly its size.
unsigned char* make_file(const char* header, size_t header_size, size_t data_size, size_t* size) {
    uint64_t length = header_size;
    *size = 8 + header_size + data_size;
    unsigned char* bytes = (unsigned char*)malloc_check(*size, "a file");
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, header_size);
    memset(bytes + 8 + header_size, 7, data_size);
    return bytes;
}

typedef void (*child_body_t)(const place_t* place);

// Runs the body in a child process; returns its exit code (or 1000 + signal) and what it printed to stderr.
int run_child(child_body_t body, const place_t* place, char* errors, size_t errors_size) {
    FILE* captured = tmpfile();
    if (!captured) fatal("no temporary file can be made for the test; free space in /tmp");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(fileno(captured), 2);
        body(place);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    rewind(captured);
    errors[fread(errors, 1, errors_size - 1, captured)] = 0;
    fclose(captured);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

void check_contains(const char* text, const char* part) {
    if (strstr(text, part)) return;
    printf("     \"%s\" lacks \"%s\"\n", text, part);
    check(0, "the message says what is wrong");
}

// A small file: one tensor of n values that are all `value`.
void declare_small(st_writer_t* w, size_t n) {
    safetensors_writer_init(w);
    safetensors_writer_tensor(w, "weight", ST_F32, 1, &n);
}

void write_constant(st_writer_t* w, size_t n, floatS value) {
    floatS values[1000];
    for (size_t i = 0; i < 1000; i++) values[i] = value;
    for (size_t done = 0; done < n; done += 1000) safetensors_writer_data(w, values, n - done < 1000 ? n - done : 1000);
}

void write_small(const char* path, size_t n, floatS value) {
    st_writer_t w;
    declare_small(&w, n);
    safetensors_writer_begin(&w, path);
    write_constant(&w, n, value);
    safetensors_writer_finish_or_die(&w);
}

// The file that was there before a failed write is still there, whole, and no temporary file is.
void check_old_file(const place_t* place, floatS value) {
    safetensors_t f;
    floatS read[10];
    safetensors_open_or_die(&f, place->path);
    check(f.n == 1 && f.tensors[0].numel == 10, "the old file has its tensor");
    safetensors_read(&f.tensors[0], read);
    for (int i = 0; i < 10; i++) check(read[i] == value, "the old file has its values");
    check(!exists(place->temporary), "the temporary file is gone");
    safetensors_close(&f);
}

// ------------------------------------------------------------------------------------------------------------------
// What is written comes back

void test_float_types(void) {
    if (!test_case("F64, F32, F16, BF16 come back within their precision")) return;
    enum { N = 20011 }; // more than the writer's buffer
    const st_dtype_t dtypes[4] = {ST_F64, ST_F32, ST_F16, ST_BF16};
    const double bounds[4] = {1e-7, 1e-7, 0x1p-11, 0x1p-8};
    const char* names[4] = {"a", "b", "c", "d"};
    size_t shape[3] = {N, 1, 1};
    place_t place = make_place();
    floatS* values = (floatS*)malloc_check(N * sizeof(floatS), "values");
    floatS* read = (floatS*)malloc_check(N * sizeof(floatS), "values");
    for (size_t i = 0; i < N; i++) values[i] = (floatS)test_normal();
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int d = 0; d < 4; d++) safetensors_writer_tensor(&w, names[d], dtypes[d], 3, shape);
    safetensors_writer_begin(&w, place.path);
    for (int d = 0; d < 4; d++) {
        for (size_t done = 0, piece = 1; done < N; done += piece, piece = piece * 3 + 1) {
            if (piece > N - done) piece = N - done;
            safetensors_writer_data(&w, values + done, piece);
        }
    }
    safetensors_writer_finish_or_die(&w);
    safetensors_t f;
    safetensors_open_or_die(&f, place.path);
    for (int d = 0; d < 4; d++) {
        const st_tensor_t* t = safetensors_find(&f, names[d]);
        check(t && t->dtype == dtypes[d] && t->numel == N && t->ndim == 3 && t->shape[0] == N, "type and shape");
        memset(read, 0xFF, N * sizeof(floatS));
        safetensors_read(t, read);
        for (size_t i = 0; i < N; i++) {
            double error = fabs((double)read[i] - values[i]) / fabs((double)values[i]);
            check_error(names[d], error, bounds[d]);
        }
    }
    safetensors_close(&f);
    remove_place(&place);
    free(values);
    free(read);
    test_end_case();
}

// Each finite 16-bit value is a fixed point, the value halfway to the next one goes to the even one, and a hair beyond
// the middle to the nearer one.
void check_16_bits(int fraction, int bias) {
    int infinity = (2 * bias + 1) << fraction;
    int wrong = 0;
    for (int sign = 0; sign <= 0x8000; sign += 0x8000) {
        for (int h = 0; h < infinity; h++) {
            int bits = sign | h;
            double here = fraction == 10 ? (double)st_from_f16((uint16_t)bits) : (double)st_from_bf16((uint16_t)bits);
            int exponent = h >> fraction;
            double step = ldexp(1.0, (exponent ? exponent : 1) - bias - fraction);
            double half = here + (sign ? -step / 2 : step / 2);
            wrong += st_to_16_bits(here, fraction, bias) != bits;
            wrong += st_to_16_bits(half, fraction, bias) != bits + (bits & 1);
            wrong += st_to_16_bits(nextafter(half, 0), fraction, bias) != bits;
            wrong += st_to_16_bits(nextafter(half, sign ? -INFINITY : INFINITY), fraction, bias) != bits + 1;
        }
        wrong += st_to_16_bits(sign ? -INFINITY : INFINITY, fraction, bias) != (sign | infinity);
        wrong += st_to_16_bits(sign ? -1e300 : 1e300, fraction, bias) != (sign | infinity);
        wrong += st_to_16_bits(sign ? -1e-300 : 1e-300, fraction, bias) != sign;
    }
    wrong += st_to_16_bits(NAN, fraction, bias) <= infinity;
    check(wrong == 0, "rounding to nearest, ties to even");
}

void test_half_types(void) {
    if (!test_case("every F16 and BF16 value, every tie, infinities, NaN")) return;
    check_16_bits(10, 15);
    check_16_bits(7, 127);
    check(st_from_f16(0x3C00) == 1 && st_from_f16(0xC500) == -5 && st_from_f16(0x0001) == 0x1p-24f, "F16 constants");
    check(st_from_f16(0x7BFF) == 65504 && st_from_f16(0x2E66) == 0.0999755859375f, "F16 constants");
    check(st_from_bf16(0x3F80) == 1 && st_from_bf16(0xC049) == -3.140625f, "BF16 constants");
    check(isinf(st_from_f16(0x7C00)) && st_from_f16(0xFC00) < 0 && isnan(st_from_f16(0x7C01)), "F16 extremes");
    check(signbit(st_from_f16(0x8000)) != 0, "F16 -0");
    test_end_case();
}

void test_raw_types(void) {
    if (!test_case("raw bytes of each of the 22 types, at odd offsets")) return;
    place_t place = make_place();
    unsigned char bytes[200];
    size_t shape[2] = {4, 3}; // 12 elements of 4, 6, ... bits fill whole bytes
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int d = ST_DTYPE_COUNT - 1; d >= 0; d--) {
        safetensors_writer_tensor(&w, st_dtype_info((st_dtype_t)d).name, (st_dtype_t)d, 2, shape);
    }
    safetensors_writer_begin(&w, place.path);
    for (int d = ST_DTYPE_COUNT - 1; d >= 0; d--) {
        size_t size = 12 * st_dtype_info((st_dtype_t)d).bits / 8;
        for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)(d * 31 + i * 7 + 1);
        safetensors_writer_raw(&w, bytes, size / 3);
        safetensors_writer_raw(&w, bytes + size / 3, size - size / 3);
    }
    safetensors_writer_finish_or_die(&w);
    safetensors_t f;
    safetensors_open_or_die(&f, place.path);
    check(f.n == 22, "22 types");
    for (int d = 0; d < ST_DTYPE_COUNT; d++) {
        const st_tensor_t* t = safetensors_find(&f, st_dtype_info((st_dtype_t)d).name);
        size_t size = 12 * st_dtype_info((st_dtype_t)d).bits / 8;
        check(t && t->dtype == (st_dtype_t)d && t->numel == 12 && t->end - t->begin == size, "type and size");
        for (size_t i = 0; t && i < size; i++) check(t->data[i] == (unsigned char)(d * 31 + i * 7 + 1), "bytes");
    }
    safetensors_close(&f);
    remove_place(&place);
    test_end_case();
}

void test_metadata(void) {
    if (!test_case("metadata with quotes, control characters, unicode, long and empty")) return;
    place_t place = make_place();
    char* long_text = (char*)malloc_check(100001, "a text");
    memset(long_text, '"', 100000);
    long_text[100000] = 0;
    const char* pairs[6][2] = {{"plain", "pt"},
                               {"", "empty key"},
                               {"empty value", ""},
                               {"quotes \" \\ /", "a\tb\nc\r\b\f\x01\x1F\x7F"},
                               {"\xC3\xA9\xE2\x82\xAC", "\xF0\x9F\x98\x80 \xED\x9F\xBF"},
                               {"long", long_text}};
    st_writer_t w;
    safetensors_writer_init(&w);
    for (int i = 0; i < 6; i++) safetensors_writer_metadata(&w, pairs[i][0], pairs[i][1]);
    safetensors_writer_metadata(&w, "not UTF-8", "a\xFFz\xC0\xAF\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82");
    safetensors_writer_begin(&w, place.path);
    safetensors_writer_finish_or_die(&w);
    safetensors_t f;
    safetensors_open_or_die(&f, place.path);
    check(f.n == 0 && f.n_metadata == 7, "seven pairs and no tensor");
    for (int i = 0; i < 6; i++) {
        const char* value = safetensors_metadata(&f, pairs[i][0]);
        check(value && !strcmp(value, pairs[i][1]), pairs[i][0]);
    }
    char mended[100] = "";
    for (const char* c = "a?z?????|????|??"; *c; c++) {
        size_t length = strlen(mended);
        snprintf(mended + length, sizeof mended - length, "%.*s", *c == '?' ? 3 : 1, *c == '?' ? "\xEF\xBF\xBD" : c);
    }
    check(!strcmp(safetensors_metadata(&f, "not UTF-8"), mended), "bytes that are no UTF-8 become U+FFFD");
    check(safetensors_metadata(&f, "absent") == NULL, "an absent key gives NULL");
    safetensors_close(&f);
    remove_place(&place);
    free(long_text);
    test_end_case();
}

void test_names(void) {
    if (!test_case("2,003 tensors with long and strange names are found by name")) return;
    enum { N = 2003 };
    place_t place = make_place();
    char name[6000];
    st_writer_t w;
    safetensors_writer_init(&w);
    size_t one = 1;
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "block.%d.\"\\\n\xE2\x82\xAC%*s", i * 7919 % N, i == 5 ? 5000 : 3, "x");
        safetensors_writer_tensor(&w, name, ST_F32, 1, &one);
    }
    safetensors_writer_begin(&w, place.path);
    for (int i = 0; i < N; i++) write_constant(&w, 1, (floatS)i);
    safetensors_writer_finish_or_die(&w);
    safetensors_t f;
    safetensors_open_or_die(&f, place.path);
    check(f.n == N, "all tensors are there");
    for (int i = 0; i < N; i++) {
        floatS value = NAN;
        snprintf(name, sizeof name, "block.%d.\"\\\n\xE2\x82\xAC%*s", i * 7919 % N, i == 5 ? 5000 : 3, "x");
        const st_tensor_t* t = safetensors_find(&f, name);
        if (t) safetensors_read(t, &value);
        check(value == (floatS)i, "the tensor of this name");
    }
    check(safetensors_find(&f, "block.") == NULL && safetensors_find(&f, "") == NULL, "absent names give NULL");
    safetensors_close(&f);
    remove_place(&place);
    test_end_case();
}

void test_sizes(void) {
    if (!test_case("scalars, zero-size tensors, 8 dimensions, no tensors; data start at 8 n")) return;
    place_t place = make_place();
    size_t none[3] = {3, 0, 5};
    size_t eight[8] = {1, 2, 1, 1, 3, 1, 1, 1};
    for (int name_length = 1; name_length <= 9; name_length++) {
        st_writer_t w;
        safetensors_writer_init(&w);
        safetensors_writer_tensor(&w, "empty first", ST_F32, 3, none);
        safetensors_writer_tensor(&w, &"abcdefghi"[9 - name_length], ST_F64, 0, NULL);
        safetensors_writer_tensor(&w, "empty", ST_BF16, 3, none);
        safetensors_writer_tensor(&w, "eight", ST_F16, 8, eight);
        safetensors_writer_tensor(&w, "another empty", ST_I64, 3, none);
        safetensors_writer_begin(&w, place.path);
        write_constant(&w, 1, 3);
        safetensors_writer_data(&w, NULL, 0);
        write_constant(&w, 6, 2);
        safetensors_writer_finish_or_die(&w);
        safetensors_t f;
        safetensors_open_or_die(&f, place.path);
        floatS read[6] = {0, 0, 0, 0, 0, 0};
        const st_tensor_t* scalar = safetensors_find(&f, &"abcdefghi"[9 - name_length]);
        check(scalar && scalar->ndim == 0 && scalar->numel == 1, "a scalar has one element");
        safetensors_read(scalar, read);
        check(read[0] == 3, "value of the scalar");
        check(((size_t)(scalar->data - (const unsigned char*)f.map) & 7) == 0, "data start at a multiple of 8");
        const st_tensor_t* t = safetensors_find(&f, "eight");
        check(t && t->ndim == 8 && t->shape[4] == 3 && t->numel == 6, "8 dimensions");
        safetensors_read(t, read);
        check(read[0] == 2 && read[5] == 2, "values after an empty tensor");
        t = safetensors_find(&f, "empty");
        check(t && t->numel == 0 && t->ndim == 3 && t->shape[2] == 5, "an empty tensor keeps its shape");
        safetensors_read(t, NULL);
        safetensors_close(&f);
    }
    remove_place(&place);
    test_end_case();
}

void test_foreign_headers(void) {
    if (!test_case("headers of other writers: white space, escapes, unknown fields, any order")) return;
    const char* header =
        "{ \"b\" : {\"shape\":[ 2 ,1],\"new\":{\"x\":[1.5e-3,-0,true,null,[{}]],\"y\":\"\\u0041\"},"
        "\"data_offsets\":[ 4,8 ],\n\t\"dtype\":\"F16\"}, "
        "\"\\u00e9\\ud83d\\ude00\\/\\n\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]},"
        "\"__metadata__\":{}, \"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]} }  \r\n";
    size_t size;
    char error[512] = "";
    safetensors_t f;
    unsigned char* bytes = make_file(header, strlen(header), 8, &size);
    int good = safetensors_parse(&f, bytes, size, "memory", error, sizeof error);
    if (!good) printf("     %s\n", error);
    check(good, "the header is accepted");
    if (good) {
        const st_tensor_t* t = safetensors_find(&f, "\xC3\xA9\xF0\x9F\x98\x80/\n");
        check(f.n == 3 && f.n_metadata == 0 && t && t->dtype == ST_I32, "escapes are decoded");
        check(t == &f.tensors[0] && safetensors_find(&f, "") == &f.tensors[1], "the order is that of the data");
        check(safetensors_find(&f, "b")->data == bytes + size - 4, "data are found");
    }
    safetensors_close(&f);
    free(bytes);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// What is damaged is refused

// The header (over 4 bytes of data) must be refused with a message that holds `message`.
void check_refused(const char* header, const char* message) {
    size_t size;
    char error[512] = "";
    safetensors_t f;
    unsigned char* bytes = make_file(header, strlen(header), 4, &size);
    int good = safetensors_parse(&f, bytes, size, "memory", error, sizeof error);
    if (good) printf("     accepted: %s\n", header);
    check(!good, "the header is refused");
    if (good) safetensors_close(&f);
    else check_contains(error, message);
    free(bytes);
}

void test_malformed_text(void) {
    if (!test_case("each class of malformed JSON is refused, and the place is named")) return;
    const char* list[][2] = {
        // header, part of the message
        {"", "header: the text ends at byte 0 where '{' is wanted"},
        {" {}", "header: byte 0 is 0x20 where '{' is wanted"},
        {"[]", "header: byte 0"},
        {"{", "header: the text ends"},
        {"{}", "data: 4 bytes follow the end"},
        {"{\"a\"", "header: the text ends at byte 4 where ':' is wanted"},
        {"{\"a", "header: the text ends at byte 3"},
        {"{\"a\":1}", "tensor \"a\": byte 5 is 0x31 where '{'"},
        {"{\"a\":{}}", "tensor \"a\", field dtype: it is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "tensor \"a\", field data_offsets: it is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "tensor \"a\", field shape: it is missing"},
        {"{'a':{}}", "header: byte 1 is 0x27"},
        {"{\"bell\\u0007\":{}}", "tensor \"bell?\", field dtype"},
        {"{\"a\\u0000\":{}}", "header: a string holds the character NUL"},
        {"{\"\\ud800\":{}}", "header: half of a surrogate pair"},
        {"{\"\\ud800\\u0041\":{}}", "header: half of a surrogate pair"},
        {"{\"\\udc00\":{}}", "header: half of a surrogate pair"},
        {"{\"\\u12g4\":{}}", "header: byte 6 is 0x67 where a hexadecimal"},
        {"{\"\\x\":{}}", "header: byte 3 is 0x78 where one of the escapes"},
        {"{\"a\nb\":{}}", "header: byte 3 is 0x0a"},
        {"{\"\xFF\":{}}", "header: byte 2 is 0xff"},
        {"{\"\xC0\x80\":{}}", "header: byte 2 is 0xc0"},
        {"{\"\xE2\x82", "header: byte 2 is 0xe2"},
        {"{\"__metadata__\":null}", "header, field __metadata__: byte"},
        {"{\"__metadata__\":{\"step\":1}}", "header, field __metadata__: byte"},
        {"{\"__metadata__\":{\"step\":\"1\",\"step\":\"2\"}}", "__metadata__ has the key \"step\" twice"},
        {"{\"__metadata__\":{\"x\":\"1\",\"y\":\"1\",\"z\":\"1\"},\"__metadata__\":{}}", "__metadata__: it stands"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) check_refused(list[i][0], list[i][1]);
    test_end_case();
}

// The buffer ends with the header, so that a sanitizer sees a step beyond it.
void test_header_prefixes(void) {
    if (!test_case("a header that ends anywhere, within an escape or a UTF-8 character too, is refused")) return;
    const char* header = "{\"__metadata__\":{\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\":\"\\u00e9\\ud83d\\ude00\\n\"},"
                         "\"a\":{\"dtype\":\"I8\",\"new\":[true,null,-1.5e+3],\"shape\":[0],\"data_offsets\":[0,0]}}";
    for (size_t length = 0; length <= strlen(header); length++) {
        size_t size;
        char error[512] = "";
        safetensors_t f;
        unsigned char* bytes = make_file(header, length, 0, &size);
        int good = safetensors_parse(&f, bytes, size, "memory", error, sizeof error);
        check(good == (length == strlen(header)), "only the whole header is accepted");
        if (good) safetensors_close(&f);
        else check_contains(error, ": ");
        free(bytes);
    }
    test_end_case();
}

void test_malformed_fields(void) {
    if (!test_case("each class of malformed tensor is refused, and the field is named")) return;
    const char* good = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"new\":[]}}";
    const char* list[][3] = {
        // a part of the good header, what stands there instead, part of the message
        {"\"new\":[]", "\"shape\":[1]", "tensor \"a\", field shape: it stands there twice"},
        {"F32", "F33", "field dtype: \"F33\" is no known type"},
        {"F32", "f32", "field dtype: \"f32\" is no known type"},
        {"\"F32\"", "32", "field dtype: byte 14"},
        {"F32\",\"shape\":[1]", "F4\",\"shape\":[3]", "F4 values of shape [3] do not fill whole bytes"},
        {"[1]", "[-1]", "field shape: -1 is no non-negative"},
        {"[1]", "[1.0]", "field shape: 1.0 is no"},
        {"[1]", "[1e0]", "field shape: 1e0 is no"},
        {"[1]", "[01]", "field shape: a number begins with"},
        {"[1]", "[1,]", "field shape: byte"},
        {"[1]", "[,1]", "field shape: byte"},
        {"[1]", "[1 1]", "field shape: byte"},
        {"[1]", "1", "field shape: byte"},
        {"[1]", "[[1]]", "field shape: byte"},
        {"[1]", "[\"1\"]", "field shape: byte"},
        {"[1]", "[1,1,1,1,1,1,1,1,1]", "field shape: there are more than 8"},
        {"[1]", "[18446744073709551616]", "field shape: 18446744073709551616 is too large"},
        {"[1]", "[4294967296,4294967297]", "more bytes than can be counted"},
        {"[1]", "[4611686018427387905]", "more bytes than can be counted"},
        {"[1]", "[9223372036854775808,2,0]", "more bytes than can be counted"},
        {"[1]", "[2]", "F32 values of shape [2] are 8 bytes, but the field data_offsets [0, 4] gives 4"},
        {"[0,4]", "[4,0]", "field data_offsets: the end, 0, lies before the begin, 4"},
        {"[0,4]", "[0,4,8]", "field data_offsets: byte"},
        {"[0,4]", "[0]", "field data_offsets: byte"},
        {"[0,4]", "[1,5]", "field data_offsets: it begins at byte 1 of the data, but"},
        {"[1],\"data_offsets\":[0,4]", "[2],\"data_offsets\":[0,8]", "it ends at byte 8, but the file has only 4"},
        {"F32\",\"shape\":[1],\"data_offsets\":[0,4]", "I8\",\"shape\":[3],\"data_offsets\":[0,3]", "data: 1 bytes"},
        {"[]}}", "[]}}x", "header: byte"},
        {"[]}}", "[]},}", "header: byte"},
        {"[]", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "field new: values are nested deeper"},
        {"[]", "truth", "field new: byte"},
        {"[]", "1.", "field new: byte"},
        {"[]", "1e", "field new: byte"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        char header[400];
        const char* part = strstr(good, list[i][0]);
        check(part != NULL, "the good header has the part");
        snprintf(header, sizeof header, "%.*s%s%s", (int)(part - good), good, list[i][1], part + strlen(list[i][0]));
        check_refused(header, list[i][2]);
    }
    test_end_case();
}

void test_malformed_layout(void) {
    if (!test_case("overlaps, gaps and doubled names are refused")) return;
    const char* list[][4] = {
        // name and offsets of a second tensor after "a", which has bytes 0 and 1; its size; part of the message
        {"b", "1,4", "3", "tensor \"b\", field data_offsets: it begins at byte 1 of the data, but the tensor"},
        {"b", "1,4", "3", "tensors may not overlap"},
        {"b", "0,2", "2", "tensors may not overlap"},
        {"b", "3,4", "1", "there may be no gap"},
        {"b", "3,3", "0", "there may be no gap"},
        {"\\u0061", "2,4", "2", "header: tensor \"a\" stands there twice"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        char header[400];
        snprintf(header, sizeof header,
                 "{\"%s\":{\"dtype\":\"I8\",\"shape\":[%s],\"data_offsets\":[%s]},"
                 "\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}", list[i][0], list[i][2], list[i][1]);
        check_refused(header, list[i][3]);
    }
    test_end_case();
}

void test_header_length(void) {
    if (!test_case("header lengths: short file, beyond the end, above the limit, 2^64 - 1")) return;
    const uint64_t lengths[4] = {9, ST_MAX_HEADER, ST_MAX_HEADER + 1, UINT64_MAX};
    const char* messages[4] = {"the file is truncated", "the file is truncated", "above the limit", "above the limit"};
    char error[512];
    safetensors_t f;
    for (int i = 0; i < 4; i++) {
        size_t size;
        unsigned char* bytes = make_file("{}      ", 8, 0, &size);
        memcpy(bytes, &lengths[i], 8);
        check(!safetensors_parse(&f, bytes, size, "memory", error, sizeof error), "a wrong length is refused");
        check_contains(error, "header length: ");
        check_contains(error, messages[i]);
        free(bytes);
    }
    for (size_t size = 0; size < 8; size++) {
        unsigned char* bytes = (unsigned char*)calloc_check(size, 1, "a file");
        check(!safetensors_parse(&f, bytes, size, "memory", error, sizeof error), "a short file is refused");
        check_contains(error, "fewer than the 8");
        free(bytes);
    }
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Mutated files

size_t random_below(size_t n) {
    size_t i = (size_t)((test_uniform() + 1) / 2 * (double)n);
    return i < n ? i : n - 1;
}

// Replaces `removed` bytes at `at` by others; returns the new buffer of exactly the new size.
unsigned char* replace_bytes(unsigned char* bytes, size_t* size, size_t at, size_t removed, const char* added,
                             size_t n_added) {
    unsigned char* result = (unsigned char*)malloc_check(*size - removed + n_added, "a file");
    memcpy(result, bytes, at);
    memcpy(result + at, added, n_added);
    memcpy(result + at + n_added, bytes + at + removed, *size - at - removed);
    *size = *size - removed + n_added;
    free(bytes);
    return result;
}

// Adds n to the length in the first 8 bytes, so that the rest of the file stays where the header says.
void shift_header_length(unsigned char* bytes, size_t size, long n) {
    uint64_t length;
    if (size < 8) return;
    memcpy(&length, bytes, 8);
    length += (uint64_t)n;
    memcpy(bytes, &length, 8);
}

// Puts another number at the place of a random number of the header.
unsigned char* edit_number(unsigned char* bytes, size_t* size, size_t header_end) {
    const char* numbers[] = {"0", "1", "2", "3", "4", "8", "12", "-1", "00", "1.5", "1e3", "4294967296",
                             "2305843009213693952", "9223372036854775807", "18446744073709551615",
                             "18446744073709551616", "99999999999999999999999"};
    size_t at = 8 + random_below(header_end - 8);
    while (at < header_end && !isdigit(bytes[at])) at++;
    size_t end = at;
    while (end < header_end && isdigit(bytes[end])) end++;
    if (at == end) return bytes;
    const char* number = numbers[random_below(sizeof numbers / sizeof numbers[0])];
    long n = (long)strlen(number);
    bytes = replace_bytes(bytes, size, at, end - at, number, (size_t)n);
    if (random_below(8)) shift_header_length(bytes, *size, n - (long)(end - at));
    return bytes;
}

// One random change of one of the kinds: another byte, a cut, an inserted byte, a doubled or removed piece, a number.
unsigned char* mutate(unsigned char* bytes, size_t* size) {
    const char* special = "{}[]\",:\\u0e-. \x80\xC3\xED\xF0\x01";
    uint64_t length = 0;
    if (*size >= 8) memcpy(&length, bytes, 8);
    size_t header_end = length < *size && length + 8 < *size ? 8 + (size_t)length : *size;
    size_t at = random_below(random_below(4) ? header_end : *size);
    char byte = random_below(2) ? special[random_below(strlen(special))] : (char)random_below(256);
    switch (*size < 16 ? 0 : random_below(8)) {
    case 0:
        if (*size) bytes[at] ^= (unsigned char)(1u << random_below(8));
        return bytes;
    case 1:
        bytes[at] = (unsigned char)byte;
        return bytes;
    case 2:
        return replace_bytes(bytes, size, at, *size - at, "", 0);
    case 3:
        bytes = replace_bytes(bytes, size, at, 0, &byte, 1);
        if (random_below(2)) shift_header_length(bytes, *size, 1);
        return bytes;
    case 4: {
        size_t n = random_below(*size - at < 40 ? *size - at : 40);
        bytes = replace_bytes(bytes, size, at, n, "", 0);
        if (random_below(2)) shift_header_length(bytes, *size, -(long)n);
        return bytes;
    }
    case 5: {
        char piece[40];
        size_t n = random_below(*size - at < 40 ? *size - at : 40);
        memcpy(piece, bytes + at, n);
        bytes = replace_bytes(bytes, size, at, 0, piece, n);
        if (random_below(2)) shift_header_length(bytes, *size, (long)n);
        return bytes;
    }
    default:
        return edit_number(bytes, size, header_end);
    }
}

// Whatever is accepted must be safe to use: all tensors lie in the file, end to end, and are found by their names.
void check_accepted(const safetensors_t* f, const unsigned char* bytes, size_t size) {
    floatS* values = (floatS*)malloc_check(size * sizeof(floatS), "values");
    size_t filled = 0;
    for (int i = 0; i < f->n; i++) {
        const st_tensor_t* t = &f->tensors[i];
        check(t->begin == filled && t->end >= t->begin, "tensors lie end to end");
        filled = t->end;
        check(t->data >= bytes + 8 && t->data + (t->end - t->begin) <= bytes + size, "data lie within the file");
        check(safetensors_find(f, t->name) == t, "the tensor is found by its name");
        if (st_dtype_is_float(t->dtype)) safetensors_read(t, values);
    }
    for (int i = 0; i < f->n_metadata; i++) {
        check(safetensors_metadata(f, f->metadata[i].key) == f->metadata[i].value, "metadata are found by their keys");
    }
    free(values);
}

void test_mutations(void) {
    if (!test_case("100,000 mutated files are refused or safe to use")) return;
    const char* headers[4] = {
        "{\"__metadata__\":{\"format\":\"pt\",\"configuration\":\"{\\\"stage\\\": 2, \\\"data\\\": \\\"\\u00e9\\\"}\"},"
        "\"conv.weight\":{\"dtype\":\"F32\",\"shape\":[2,3,1,1],\"data_offsets\":[0,24]},"
        "\"conv.bias\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[24,28]}}    ",
        "{\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"BF16\",\"shape\":[0,7],"
        "\"data_offsets\":[8,8]},\"c\":{\"dtype\":\"I8\",\"shape\":[3,1],\"data_offsets\":[8,11]},\"d\":{"
        "\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[11,19]},"
        "\"e\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[19,20]}}",
        "{\"\\ud83d\\ude00\xC3\xA9\":{\"extra\":[1,{\"x\":[true,null,-1.5e+3]}],\"dtype\":\"BOOL\",\"shape\":[1],"
        "\"data_offsets\":[0,1]}}",
        "{}      "};
    const size_t data_sizes[4] = {28, 20, 1, 0};
    int accepted = 0, refused = 0, silent = 0;
    for (int i = 0; i < 100000; i++) {
        size_t size;
        char error[512] = "";
        safetensors_t f;
        int seed = (int)random_below(20) % 4;
        if (seed == 3) seed = (int)random_below(4); // the tiny one less often
        unsigned char* bytes = make_file(headers[seed], strlen(headers[seed]), data_sizes[seed], &size);
        for (size_t n = 1 + random_below(3); n > 0; n--) bytes = mutate(bytes, &size);
        if (safetensors_parse(&f, bytes, size, "memory", error, sizeof error)) {
            accepted++;
            check_accepted(&f, bytes, size);
            safetensors_close(&f);
        } else {
            refused++;
            silent += strchr(error, ':') == NULL;
        }
        free(bytes);
    }
    printf("     %d accepted, %d refused\n", accepted, refused);
    check(silent == 0, "each refusal names a field");
    check(accepted > 1000 && refused > 50000, "the mutations reach both outcomes");
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Files on disk

void child_open(const place_t* place) {
    safetensors_t f;
    safetensors_open_or_die(&f, place->path);
}

void child_read_integers(const place_t* place) {
    safetensors_t f;
    floatS value;
    safetensors_open_or_die(&f, place->path);
    safetensors_read(&f.tensors[0], &value);
}

void test_bad_files(void) {
    if (!test_case("missing, empty, truncated at each byte, a folder, integers as weights: exit code 1")) return;
    place_t place = make_place();
    char text[4096], error[1280];
    safetensors_t f;
    size_t size;
    check(run_child(child_open, &place, text, sizeof text) == 1, "a missing file ends the program with exit code 1");
    check_contains(text, place.path);
    check_contains(text, "error: ");
    check_contains(text, "No such file");
    write_small(place.path, 10, 1);
    unsigned char* bytes = read_file(place.path, &size);
    for (size_t length = 0; length < size; length++) {
        write_file(place.path, bytes, length);
        check(!safetensors_open(&f, place.path, error, sizeof error), "a truncated file is refused");
    }
    check_contains(error, "tensor \"weight\", field data_offsets: it ends at byte 40, but the file has only 39 bytes");
    check(run_child(child_open, &place, text, sizeof text) == 1, "a truncated file ends the program with exit code 1");
    check_contains(text, "model.safetensors: tensor \"weight\", field data_offsets: ");
    check_contains(text, "truncated; the file is damaged or of another format: copy or make it again");
    free(bytes);
    check(!safetensors_open(&f, place.folder, error, sizeof error), "a folder is refused");
    check_contains(error, "it is a folder");
    check(!safetensors_open(&f, "/dev/null", error, sizeof error), "a device is refused");
    const char* integers = "{\"labels\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    bytes = make_file(integers, strlen(integers), 8, &size);
    write_file(place.path, bytes, size);
    check(run_child(child_read_integers, &place, text, sizeof text) == 1, "integers as weights end the program");
    check_contains(text, "model.safetensors: tensor \"labels\", field dtype: I64 cannot be read as weights");
    free(bytes);
    remove_place(&place);
    test_end_case();
}

void child_file_size_limit(const place_t* place) {
    struct rlimit limit = {20000, 20000};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    write_small(place->path, 100003, 2);
}

// The temporary name leads to the device that is always full.
void child_full_disk(const place_t* place) {
    if (symlink("/dev/full", place->temporary)) _exit(99);
    write_small(place->path, 100003, 2);
}

void test_full_disk(void) {
    if (!test_case("a full disk: message with the bytes needed, the old file stays")) return;
    place_t place = make_place();
    char text[4096];
    write_small(place.path, 10, 1);
    check(run_child(child_file_size_limit, &place, text, sizeof text) == 1, "a file size limit gives exit code 1");
    check_contains(text, "model.safetensors: cannot reserve space for the file: File too large; the file needs 400");
    check_contains(text, "unharmed");
    check_old_file(&place, 1);
    check(run_child(child_full_disk, &place, text, sizeof text) == 1, "a full disk gives exit code 1");
    check_contains(text, "model.safetensors: cannot write the file: No space left on device; the file needs 400");
    check_contains(text, "free; free space or choose another folder");
    check_old_file(&place, 1);
    remove_place(&place);
    test_end_case();
}

// The super-user may write anywhere, so the child becomes somebody else first.
void child_unwritable_folder(const place_t* place) {
    if (geteuid() == 0 && (setegid(65534) || seteuid(65534))) _exit(99);
    write_small(place->path, 10, 2);
}

void child_missing_folder(const place_t* place) {
    char path[400];
    snprintf(path, sizeof path, "%s/absent/model.safetensors", place->folder);
    write_small(path, 10, 2);
}

void child_folder_as_file(const place_t* place) { write_small(place->folder, 10, 2); }

void test_unwritable_folder(void) {
    if (!test_case("an unwritable or missing folder, a folder as the file: the old file stays")) return;
    place_t place = make_place();
    char text[4096], beside[300];
    write_small(place.path, 10, 1);
    check(chmod(place.folder, 0555) == 0, "the folder becomes read-only");
    check(run_child(child_unwritable_folder, &place, text, sizeof text) == 1, "an unwritable folder gives exit code 1");
    check_contains(text, "model.safetensors: cannot create the temporary file beside it: Permission denied; make the");
    check(chmod(place.folder, 0755) == 0, "the folder becomes writable");
    check_old_file(&place, 1);
    check(run_child(child_missing_folder, &place, text, sizeof text) == 1, "a missing folder gives exit code 1");
    check_contains(text, "absent/model.safetensors: cannot create the temporary file beside it: No such file");
    check(run_child(child_folder_as_file, &place, text, sizeof text) == 1, "a folder as the file gives exit code 1");
    check_contains(text, "cannot rename the temporary file to it: ");
    snprintf(beside, sizeof beside, "%s.tmp", place.folder);
    check(!exists(beside), "the temporary file is gone");
    remove_place(&place);
    test_end_case();
}

void child_killed(const place_t* place) {
    st_writer_t w;
    declare_small(&w, 100003);
    safetensors_writer_begin(&w, place->path);
    write_constant(&w, 50000, 2);
    kill(getpid(), SIGKILL);
}

void child_too_little(const place_t* place) {
    st_writer_t w;
    declare_small(&w, 10);
    safetensors_writer_begin(&w, place->path);
    write_constant(&w, 9, 2);
    safetensors_writer_finish_or_die(&w);
}

void child_too_much(const place_t* place) {
    st_writer_t w;
    declare_small(&w, 10);
    safetensors_writer_begin(&w, place->path);
    write_constant(&w, 11, 2);
}

void child_doubled_name(const place_t* place) {
    st_writer_t w;
    size_t n = 1;
    declare_small(&w, 10);
    safetensors_writer_tensor(&w, "weight", ST_F32, 1, &n);
    safetensors_writer_begin(&w, place->path);
}

void test_interrupted(void) {
    if (!test_case("killed while writing; too few, too many values, a doubled name: the old file stays")) return;
    place_t place = make_place();
    char text[4096];
    write_small(place.path, 10, 1);
    check(run_child(child_killed, &place, text, sizeof text) == 1000 + SIGKILL, "the child is killed");
    check(exists(place.temporary), "a killed program leaves its temporary file");
    write_small(place.path, 10, 3); // goes over it
    check_old_file(&place, 3);
    check(run_child(child_too_little, &place, text, sizeof text) == 1000 + SIGABRT, "too few values are a bug");
    check(run_child(child_too_much, &place, text, sizeof text) == 1000 + SIGABRT, "too many values are a bug");
    check(unlink(place.temporary) == 0, "an abort leaves the temporary file");
    check(run_child(child_doubled_name, &place, text, sizeof text) == 1, "a doubled name is refused");
    check_contains(text, "tensor \"weight\" stands there twice");
    check_old_file(&place, 3);
    remove_place(&place);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_float_types();
    test_half_types();
    test_raw_types();
    test_metadata();
    test_names();
    test_sizes();
    test_foreign_headers();
    test_malformed_text();
    test_header_prefixes();
    test_malformed_fields();
    test_malformed_layout();
    test_header_length();
    test_mutations();
    test_bad_files();
    test_full_disk();
    test_unwritable_folder();
    test_interrupted();
    return test_finish();
}
