// The tokenizers of texts: CLIP's byte pairs and SentencePiece's unigram model: rules with small vocabularies made here;
// damaged files; and, where they are there, the published vocabularies (too large for this repository), in the folder
// that TEXT_FILES names, or in runs/text: bpe_simple_vocab_16e6.txt.gz or merges.txt, and spiece.model.

// defines: clip_bpe_t, clip_bpe_parse, clip_bpe_open, clip_bpe_encode
#include "common/text/clip_bpe.h"
// defines: unigram_t, unigram_parse, unigram_open, unigram_encode
#include "common/text/unigram.h"
// defines: test_begin, test_case, test_end_case, test_finish, check
#include "tests/test.h"
// defines: temporary_begin, temporary_write, temporary_path, check_message
#include "tests/temporary.h"
// defines: blob_t, put_bytes, put_field, put_piece, put_toy
#include "tests/toy_vocabulary.h"

// The numbers as a text, "3 9 1202".
static const char* listed(const int* ids, int n, char* out) { // (16 n + 1)
    *out = 0;
    for (int i = 0; i < n; i++) sprintf(out + strlen(out), "%s%d", i ? " " : "", ids[i]);
    return out;
}

static void check_text(const char* got, const char* wanted, const char* text) {
    if (!strcmp(got, wanted)) return;
    printf("     \"%s\": got \"%s\", wanted \"%s\"\n", text, got, wanted);
    check(0, "the expected numbers");
}

// ---------------------------------------------------------------------------------------------------------------------
// Unicode

// NFC of a text, as UTF-8.
static const char* nfc(const char* text, char* out) {
    uint32_t codes[64], *made;
    size_t n = 0, size = strlen(text);
    unsigned char* to = (unsigned char*)out;
    for (size_t at = 0; at < size; n++) at += (size_t)utf8_next((const unsigned char*)text + at, size - at, &codes[n]);
    size_t length = unicode_nfc(codes, n, &made);
    for (size_t i = 0; i < length; i++) to += utf8_put(to, made[i]);
    *to = 0;
    free(made);
    return out;
}

static void test_unicode(void) {
    if (!test_case("NFC, kinds and small letters of code points")) return;
    static const char* const pairs[][2] = {
        {"", ""}, {"plain", "plain"},
        {"e\u0301", "\u00E9"}, {"\u00E9", "\u00E9"},
        {"e\u0327\u0301", "\u0229\u0301"},        // the cedilla joins first,
        {"e\u0301\u0327", "\u0229\u0301"},        // wherever it was typed
        {"\u212B \u2126", "\u00C5 \u03A9"},       // Angstrom and Ohm signs
        {"\u0958", "\u0915\u093C"},               // not put together again
        {"\u1100\u1161\u11A8", "\uAC01"}, {"\uAC00\u11A8", "\uAC01"}, {"\uAC01\u11A8", "\uAC01\u11A8"},
        {"\u0344", "\u0308\u0301"}, {"\u0301", "\u0301"}, {"a\u0301\u0301", "\u00E1\u0301"},
        {"\u1EAD", "\u1EAD"}, {"a\u0323\u0302", "\u1EAD"}, {"a\u0302\u0323", "\u1EAD"},
        {"\uF900", "\u8C48"}};
    char out[128];
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        check_text(nfc(pairs[i][0], out), pairs[i][1], pairs[i][0]);
    }
    check(unicode_lower('A') == 'a' && unicode_lower('a') == 'a' && unicode_lower(0x100) == 0x101, "small letters");
    check(unicode_lower(0x101) == 0x101 && unicode_lower(0x10FFFF) == 0x10FFFF && unicode_lower(0x3A3) == 0x3C3, "small");
    check(unicode_lower(0x130) == 0x130, "U+0130 has no small letter of one code point");
    check(unicode_is_letter('z') && unicode_is_letter(0x65E5) && !unicode_is_letter('_') && !unicode_is_letter('1'), "L");
    check(unicode_is_number('0') && unicode_is_number(0xBD) && !unicode_is_number('a'), "N");
    check(unicode_is_space(' ') && unicode_is_space(0x3000) && !unicode_is_space(0x200B), "white space");
    test_end_case();
}

static void test_utf8(void) {
    if (!test_case("UTF-8, every code point, and bytes that are none")) return;
    for (uint32_t code = 1; code < 0x110000; code++) {
        unsigned char bytes[4];
        uint32_t back;
        int surrogate = code >= 0xD800 && code < 0xE000, n = utf8_put(bytes, code);
        int read = utf8_next(bytes, (size_t)n, &back);
        if (surrogate ? read != 1 || back != UTF8_INVALID : read != n || back != code) check(0, "code points come back");
    }
    static const char* const none[] = {"\x80", "\xFF", "\xC0\x80", "\xE0\x80\x80", "\xF5\x80\x80\x80", "\xE2\x96",
                                       "\xED\xA0\x80"};
    for (int i = 0; i < 7; i++) {
        uint32_t code;
        int n = utf8_next((const unsigned char*)none[i], strlen(none[i]), &code);
        check(n == 1 && code == UTF8_INVALID, "one byte counts as U+FFFD");
    }
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// CLIP

// Ten merges, numbered from 0.
static const char small_merges[] = "#version: 0.2\nt h\nth e</w>\nc a\nca t</w>\na b\nab ab\r\n\nn o\nno o</w>\ne r\n1 2\n";

static void open_small(clip_bpe_t* t) {
    char error[512];
    if (!clip_bpe_parse(t, small_merges, strlen(small_merges), error, sizeof error)) fatal("%s", error);
}

// What the numbers stand for: bytes by themselves, "|" behind the last of a word, merges as [r].
static const char* clip_readable(const clip_bpe_t* t, const char* text, char* out) {
    unsigned char order[CLIP_BYTES];
    int ids[200], n = clip_bpe_encode(t, text, ids, 200);
    clip_byte_order(order);
    *out = 0;
    check(ids[0] == t->start && ids[n - 1] == t->end && ids[199] == t->end, "marks of start and end");
    for (int i = 1; i < n - 1; i++) {
        char* to = out + strlen(out);
        if (ids[i] >= t->start) sprintf(to, "<%s>", ids[i] == t->start ? "start" : "end");
        else if (ids[i] >= CLIP_SYMBOLS) sprintf(to, "[%d]", ids[i] - CLIP_SYMBOLS);
        else sprintf(to, order[ids[i] % 256] < 128 ? "%c%s" : "%02X%s", order[ids[i] % 256], ids[i] >= 256 ? "|" : "");
    }
    return out;
}

static void test_clip_rules(void) {
    if (!test_case("CLIP: words, merges and cleaning")) return;
    static const char* const cases[][2] = {
        {"", ""}, {"   ", ""}, {"\t\n\u3000", ""},
        {"the", "[1]"}, {"THE", "[1]"}, {"then", "[0]en|"}, {"cat", "[3]"}, {"cats", "[2]ts|"},
        {"ababab", "[5]ab|"}, {"abababab", "[5][4]ab|"}, {"abab c", "[4]ab|c|"}, // the last byte is another symbol
        {"noo", "[7]"}, {"nooo", "[6]oo|"},
        {"12", "1|2|"}, {"a1b", "a|1|b|"}, {"a_b", "a|_|b|"}, {"...!?", "...!?|"}, {"a...b", "a|...|b|"},
        {"don't", "don|'t|"}, {"we'll I'M", "we|'ll|i|'m|"}, {"'tis", "'t|is|"}, {"x'y", "x|'|y|"}, {"!'s", "!'|s|"},
        {"e\u0301", "C3A9|"}, {"\u00C9", "C3A9|"}, {"a\u2019s", "a|'s|"}, {"\u201Cq\u201D", "\"|q|\"|"},
        {"\u0130", "i|CC87|"}, {"i\u0307x", "i|CC87|x|"}, // a mark is no letter; with i it has no single code point
        {"\u65E5\u672C", "E697A5E69CAC|"}, {"x\u200By", "x|E2808B|y|"}, {"\u00BD", "C2BD|"},
        {"<|endoftext|> a", "<end>a|"}, {"<|startoftext|>", "<start>"}, {"!<|endoftext|>", "!<||endoftext||>|"},
        {"\x80y", "EFBFBD|y|"}};
    clip_bpe_t t;
    open_small(&t);
    check(t.merges == 10 && t.start == 522 && t.end == 523, "sizes");
    char out[2048];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_text(clip_readable(&t, cases[i][0], out), cases[i][1], cases[i][0]);
    }
    clip_bpe_close(&t);
    test_end_case();
}

// Whatever is cut off, the mark of the end stays; many words cost no more than those that are kept.
static void check_cut(const clip_bpe_t* t) {
    const int words = 10000;
    char* text = (char*)malloc(5 * words + 1);
    int ids[CLIP_LENGTH + 1], two[2];
    for (int i = 0; i < words; i++) memcpy(text + 5 * i, "word ", 5);
    text[5 * words] = 0;
    ids[CLIP_LENGTH] = -1;
    check(clip_bpe_encode(t, text, ids, CLIP_LENGTH) == CLIP_LENGTH, "77 numbers");
    check(ids[0] == t->start && ids[CLIP_LENGTH - 1] == t->end && ids[CLIP_LENGTH] == -1, "the marks stay");
    check(clip_bpe_encode(t, text, two, 2) == 2 && two[0] == t->start && two[1] == t->end, "two numbers are both marks");
    check(clip_bpe_encode(t, "", ids, CLIP_LENGTH) == 2 && ids[1] == t->end && ids[76] == t->end, "the empty text");
    free(text);
}

static void test_clip_cut(void) {
    if (!test_case("CLIP: long and empty texts")) return;
    clip_bpe_t t;
    open_small(&t);
    check_cut(&t);
    clip_bpe_close(&t);
    test_end_case();
}

static void open_clip(const char* path) {
    clip_bpe_t t;
    clip_bpe_open(&t, path);
    clip_bpe_close(&t);
}

static void test_clip_files(void) {
    if (!test_case("CLIP: files, packed and damaged")) return;
    static const char* const wrong[][2] = {
        {"head\nt h\nth\n", "line 3 is no pair"}, {"head\nt h x\n", "line 2 is no pair"},
        {"head\nth e\n", "merges a symbol that no line"}, {"head\nt h\nt h\n", "is there already"},
        {"head\nt h\nh e\nth e\nt he\n", "line 5 makes a symbol that is there"}, {"head\n", "no merges"}};
    char path[TEMPORARY_PATH];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        temporary_write("wrong.txt", wrong[i][0], strlen(wrong[i][0]));
        check_message(open_clip, temporary_path(path, "wrong.txt"), wrong[i][1], "merges.txt");
    }
    gzFile packed = gzopen(temporary_path(path, "small.txt.gz"), "wb");
    gzwrite(packed, small_merges, (unsigned)strlen(small_merges));
    gzclose(packed);
    clip_bpe_t t;
    clip_bpe_open(&t, path);
    check(t.merges == 10, "a packed file");
    clip_bpe_close(&t);
    size_t size;
    char* bytes = temporary_read("small.txt.gz", &size);
    temporary_write("cut.txt.gz", bytes, size - 12);
    free(bytes);
    check_message(open_clip, temporary_path(path, "cut.txt.gz"), "cannot be unpacked", "copy it again");
    check_message(open_clip, temporary_path(path, "none.txt"), "cannot be opened", NULL);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// Unigram

static void parse_toy(unigram_t* t, const blob_t* b) {
    char error[512];
    if (!unigram_parse(t, b->bytes, b->size, error, sizeof error)) fatal("%s", error);
}

static void check_unigram(const unigram_t* t, const char* const (*cases)[2], size_t n) {
    char out[4096];
    int ids[200];
    for (size_t i = 0; i < n; i++) {
        int count = unigram_encode(t, cases[i][0], ids, 200);
        check(ids[count - 1] == t->end && ids[199] == (count == 200 ? t->end : 0), "the mark of the end, then zeros");
        check_text(listed(ids, count - 1, out), cases[i][1], cases[i][0]);
    }
}

static blob_t toy;

static void test_toy(void) {
    if (!test_case("unigram: the toy model")) return;
    static const char* const cases[][2] = {
        {"a", "7"}, {"ab", "9"}, {"abc", "7 10"}, {"cab", "3 6 8"}, {" a  b ", "7 3 5"}, {"abcabc", "7 10 4 10"},
        {"zz", "3 2"}, {"azzb z", "7 2 5 3 2"}, {"<x>a", "3 13 4"}, {"ca", "3 6 4"}, {"bca", "3 10 4"}, {"   ", ""},
        {"", ""}, {"\xFF\xFE", "3 2"}, {"\U0001F642", "3 2"}, {"</s>", "3 2"}};
    unigram_t t;
    put_toy(&toy, NULL, 0);
    parse_toy(&t, &toy);
    check(t.n == 14 && t.unknown == 2 && t.end == 1 && t.least == -9 && t.most == -2, "sizes");
    check_unigram(&t, cases, sizeof cases / sizeof *cases);
    unigram_close(&t);
    test_end_case();
}

// The longest that fits is replaced; what becomes a blank counts as one, what becomes nothing is gone.
static void test_replacements(void) {
    if (!test_case("unigram: replacements")) return;
    static const char* const replacements[][2] = {{"A", "a"}, {"AB", "b c"}, {"\u00AB", "ab"}, {"\t", " "},
                                                  {"\x01", ""}, {"_", " a"}};
    static const char* const cases[][2] = {
        {"A", "7"}, {"Aa", "7 4"}, {"AB", "3 5 3 6"}, {"AbAB", "9 5 3 6"}, {"\u00AB", "9"},
        {"\u00ABAB\tc", "9 5 3 6 3 6"}, {"\ta\t \t", "7"}, {"a\x01\x01 b", "7 3 5"}, {"\x01", ""}, {" \x01 a", "7"},
        {"b_ _", "3 5 7 7"}, {"\u00AC", "3 2"}, {"\xC2", "3 2"}};
    unigram_t t;
    put_toy(&toy, replacements, 6);
    parse_toy(&t, &toy);
    check_unigram(&t, cases, sizeof cases / sizeof *cases);
    unigram_close(&t);
    test_end_case();
}

static void check_unigram_cut(const unigram_t* t) {
    const int words = 10000;
    char* text = (char*)malloc(5 * words + 1);
    int ids[17], count;
    for (int i = 0; i < words; i++) memcpy(text + 5 * i, "word ", 5);
    text[5 * words] = 0;
    ids[16] = -1;
    check(unigram_encode(t, text, ids, 16) == 16 && ids[15] == t->end && ids[16] == -1, "the mark of the end stays");
    check(unigram_encode(t, text, ids, 1) == 1 && ids[0] == t->end, "one number is the mark of the end");
    count = unigram_encode(t, "", ids, 16);
    check(count == 1 && ids[0] == t->end && ids[1] == 0 && ids[15] == 0, "the empty text");
    free(text);
}

static void test_unigram_cut(void) {
    if (!test_case("unigram: long and empty texts")) return;
    unigram_t t;
    put_toy(&toy, NULL, 0);
    parse_toy(&t, &toy);
    check_unigram_cut(&t);
    unigram_close(&t);
    test_end_case();
}

// A file cut anywhere, or with a wrong byte, is refused, or read as something harmless: nothing outside it is touched
// (the sanitizers watch), and what was read can be used.
static void test_damaged(void) {
    if (!test_case("unigram: damaged files")) return;
    static const char* const replacements[][2] = {{"A", "a"}, {"\u00AB", "ab"}};
    static blob_t damaged;
    char error[512];
    int ids[16], refused = 0;
    put_toy(&toy, replacements, 2);
    for (size_t i = 0; i < 2 * toy.size; i++) {
        int cut = i < toy.size;
        size_t at = i % toy.size;
        if (at > 700 && at % 13) continue; // the table of replacements is mostly zeros
        damaged = toy;
        if (cut) damaged.size = at;
        else damaged.bytes[at] ^= (unsigned char)(1 << at % 8);
        unsigned char* exact = (unsigned char*)malloc(damaged.size ? damaged.size : 1); // a byte too many is seen
        memcpy(exact, damaged.bytes, damaged.size);
        unigram_t t;
        if (unigram_parse(&t, exact, damaged.size, error, sizeof error)) unigram_encode(&t, "A \u00ABzabc", ids, 16);
        else refused++, check(error[0] != 0, "a reason");
        unigram_close(&t);
        free(exact);
    }
    check(refused > 100, "most are refused");
    test_end_case();
}

static void open_unigram(const char* path) {
    unigram_t t;
    unigram_open(&t, path);
    unigram_close(&t);
}

static void test_unigram_files(void) {
    if (!test_case("unigram: files of other kinds")) return;
    char path[TEMPORARY_PATH];
    temporary_write("page.model", "<!DOCTYPE html>", 15);
    check_message(open_unigram, temporary_path(path, "page.model"), "damaged", "spiece.model");
    check_message(open_unigram, temporary_path(path, "none.model"), "cannot be opened", NULL);
    blob_t inner = {{0}, 0};
    put_toy(&toy, NULL, 0);
    put_field(&inner, 3, 2); // BPE
    put_bytes(&toy, 2, inner.bytes, inner.size);
    temporary_write("bpe.model", toy.bytes, toy.size);
    check_message(open_unigram, temporary_path(path, "bpe.model"), "type 2, not unigram", NULL);
    put_toy(&toy, NULL, 0);
    put_piece(&toy, "abc", -1, PIECE_NORMAL);
    temporary_write("twice.model", toy.bytes, toy.size);
    check_message(open_unigram, temporary_path(path, "twice.model"), "is there twice", NULL);
    test_end_case();
}

// ---------------------------------------------------------------------------------------------------------------------
// The published vocabularies: numbers from the originals' own code, without the marks

static const struct { const char *text, *t5, *clip; } vectors[] = {
    {"", "", ""},
    {"a photo of a cat", "3 9 1202 13 3 9 1712", "320 1125 539 320 2368"},
    {"A red circle on a blue square.", "71 1131 8196 30 3 9 1692 2812 5", "320 736 7117 525 320 1746 3999 269"},
    {"two red circles left of a blue square", "192 1131 15162 646 13 3 9 1692 2812",
     "1237 736 19411 1823 539 320 1746 3999"},
    {"  leading and   double spaces ", "1374 11 1486 4856", "3833 537 3200 9006"},
    {"caf\u00E9", "11949", "15304"}, {"cafe\u0301", "11949", "15304"},
    {"\uFB01ne \u00BD \u2122 \u2460", "1399 209 2 357 3 2305 209", "171 105 223 1422 33613 11675 158 239 510"},
    {"\u65E5\u672C\u8A9E text", "3 2 1499", "39121 44353 34002 508 4160"},
    {"tab\there\nnew", "3808 270 126", "14724 763 686"},
    {"it's 3:45pm, $19.99!", "34 31 7 220 10 2128 2028 6 1970 21316 55",
     "585 568 274 281 275 276 990 267 259 272 280 269 280 280 256"},
    {"\U0001F642 smile", "3 2 3993", "14860 3490"},
    {"don't we'll I'M", "278 31 17 62 31 195 27 31 329", "847 713 649 1342 328 880"},
    {"x\u200BY\u00ADz", "3 226 3 476 575 172", "343 9844 344 22618 345"},
    {"\uFF26\uFF35\uFF2C\uFF2C width", "27645 9400", "171 121 228 171 121 243 171 121 234 171 121 490 23571"},
    {"Yes", "2163", "1958"},
    {"\u2034", "3 17774 7079", "728 368"}, {"Q \u2034 you", "1593 3 7079 17774 25", "336 728 368 592"}, // float ties
    {"<|endoftext|> a", "3 2 9175 989 858 6327 9175 3155 3 9", "49407 320"}};
enum { VECTORS = sizeof vectors / sizeof *vectors };

// The path of a file of the published vocabularies, or 0, which is said.
static int published(char* path, const char* name, const char* second) {
    const char* folder = getenv("TEXT_FILES") ? getenv("TEXT_FILES") : "runs/text";
    snprintf(path, TEMPORARY_PATH, "%s/%s", folder, name);
    if (!access(path, R_OK)) return 1;
    if (second) return published(path, second, NULL);
    printf("     skipped: there is no %s (TEXT_FILES=FOLDER names another folder)\n", path);
    return 0;
}

static void test_published_clip(void) {
    char path[TEMPORARY_PATH], out[4096];
    int ids[CLIP_LENGTH];
    clip_bpe_t t;
    if (!test_case("CLIP: the published vocabulary")) return;
    if (published(path, "bpe_simple_vocab_16e6.txt.gz", "merges.txt")) {
        clip_bpe_open(&t, path);
        check(t.merges == CLIP_MERGES && t.start == 49406 && t.end == 49407, "sizes");
        for (int i = 0; i < VECTORS; i++) {
            int n = clip_bpe_encode(&t, vectors[i].text, ids, CLIP_LENGTH);
            check_text(listed(ids + 1, n - 2, out), vectors[i].clip, vectors[i].text);
        }
        check_cut(&t);
        clip_bpe_close(&t);
    }
    test_end_case();
}

static void test_published_t5(void) {
    char path[TEMPORARY_PATH], out[4096];
    int ids[256];
    unigram_t t;
    if (!test_case("unigram: T5's vocabulary")) return;
    if (published(path, "spiece.model", NULL)) {
        unigram_open(&t, path);
        check(t.n == 32000 && t.unknown == 2 && t.end == 1 && t.longest == 20, "sizes");
        check(fabs(t.least + 13.590115) < 1e-6, "the least score");
        for (int i = 0; i < VECTORS; i++) {
            int n = unigram_encode(&t, vectors[i].text, ids, 256);
            check_text(listed(ids, n - 1, out), vectors[i].t5, vectors[i].text);
        }
        check_unigram_cut(&t);
        unigram_close(&t);
    }
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    test_unicode();
    test_utf8();
    test_clip_rules();
    test_clip_cut();
    test_clip_files();
    test_toy();
    test_replacements();
    test_unigram_cut();
    test_damaged();
    test_unigram_files();
    test_published_clip();
    test_published_t5();
    temporary_end();
    return test_finish();
}
