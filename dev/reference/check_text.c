// check_text.c: the numbers of texts by both tokenizers, for check_text.py: texts come in with a 0 byte behind each, a
// line of CLIP's numbers and one of T5's goes out for each.
//
//     build/cpu/check_text bpe_simple_vocab_16e6.txt.gz spiece.model < TEXTS
//
// defines: clip_bpe_open, clip_bpe_encode
#include "common/text/clip_bpe.h"
// defines: unigram_open, unigram_encode
#include "common/text/unigram.h"

enum { LENGTH = 1 << 16 };

static void print_ids(const int* ids, int n) {
    for (int i = 0; i < n; i++) printf("%s%d", i ? " " : "", ids[i]);
    printf("\n");
}

int main(int argc, char** argv) {
    if (argc != 3) fatal("usage: check_text CLIP_VOCABULARY SPIECE_MODEL < TEXTS");
    static int ids[LENGTH];
    clip_bpe_t clip;
    unigram_t t5;
    clip_bpe_open(&clip, argv[1]);
    unigram_open(&t5, argv[2]);
    char* text = NULL;
    size_t room = 0;
    while (getdelim(&text, &room, 0, stdin) > 0) {
        print_ids(ids, clip_bpe_encode(&clip, text, ids, LENGTH));
        print_ids(ids, unigram_encode(&t5, text, ids, LENGTH));
    }
    free(text);
    clip_bpe_close(&clip);
    unigram_close(&t5);
    return 0;
}
