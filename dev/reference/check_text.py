"""Both tokenizers beside the originals' code on random texts: openai/CLIP, transformers, sentencepiece.

    make build/cpu/check_text
    python dev/reference/check_text.py build/cpu/check_text CLIP spiece.model [FOLDER]   # CLIP: a checkout of openai/CLIP

FOLDER holds vocab.json and merges.txt, for transformers' tokenizer. ASCII texts go through openai's own cleaning (ftfy,
HTML); of the others NFC alone is asked, so its cleaning is left out there. Code points that this Python does not know
are left out: newer Unicode has letters among them; and U+0345, which regex, told to ignore case, counts neither as a
letter nor as anything else, so that openai's tokenizer loses it. Needs ftfy, regex, sentencepiece.
"""
import argparse
import pathlib
import random
import subprocess
import sys
import unicodedata

import sentencepiece

WORDS = """a an the red blue photo of cat dog on in it's don't we'll I'M U.S.A. 19.99 $5 #tag naïve café Zürich ÉCOLE STRASSE
ﬁne ½ ™ ① 日本語 中文 한국어 русский ΑΒΓ हिन्दी ไทย עברית العربية 🙂 👩‍👩‍👧 e-mail x² … – — « » ٣ Ⅷ ÅNGSTRÖM İstanbul""".split()


def random_text(draw, kind):
    n = draw.randrange(0, 40)
    if kind == "ascii":
        return "".join(chr(draw.randrange(32, 127)) for _ in range(n))
    if kind == "words":
        return draw.choice((" ", "  ", ", ", "\n", "\u00a0", "")).join(draw.choice(WORDS) for _ in range(n))
    blocks = ((32, 127), (160, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1100, 0x1200),
              (0x1E00, 0x2100), (0x2100, 0x2C00), (0x3000, 0x3400), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xF900, 0xFFFE),
              (0x1F300, 0x1F700), (1, 0x110000))
    codes = (chr(draw.randrange(*draw.choice(blocks))) for _ in range(n))
    return "".join(c for c in codes if unicodedata.category(c) not in ("Cs", "Cn") and c != "\u0345")


def ours(program, vocabulary, model, texts):
    out = subprocess.run([program, vocabulary, model], input="".join(t + "\0" for t in texts).encode(), check=True,
                         capture_output=True).stdout.decode().splitlines()
    rows = [[int(i) for i in line.split()] for line in out]
    return rows[::2], rows[1::2]


def report(name, texts, got, wanted):
    wrong = [i for i in range(len(texts)) if got[i] != wanted[i]]
    print(f"{name}: {len(wrong)} of {len(texts)} differ")
    for i in wrong[:5]:
        print(f"   {texts[i]!r}\n      here {got[i]}\n      there {wanted[i]}")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program")
    parser.add_argument("clip", type=pathlib.Path, help="checkout of openai/CLIP")
    parser.add_argument("model", help="spiece.model")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="vocab.json and merges.txt")
    parser.add_argument("-n", type=int, default=3000, help="texts of each kind")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.clip / "clip"))
    import simple_tokenizer
    openai = simple_tokenizer.SimpleTokenizer()
    t5 = sentencepiece.SentencePieceProcessor(model_file=arguments.model)
    vocabulary = str(arguments.clip / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    draw, wrong = random.Random(1), 0
    for kind in ("ascii", "words", "unicode"):
        texts = [random_text(draw, kind) for _ in range(arguments.n)]
        clip_here, t5_here = ours(arguments.program, vocabulary, arguments.model, texts)
        wrong += report(f"sentencepiece, {kind}", texts, t5_here, [[*t5.encode(t), 1] for t in texts])
        if kind != "ascii":
            simple_tokenizer.basic_clean = lambda t: unicodedata.normalize("NFC", t)
        plain = [t for t in texts if not any(c in t for c in "‘’“”")]
        here = [row for t, row in zip(texts, clip_here) if t in plain]
        wrong += report(f"openai/CLIP, {kind}", plain, here, [[49406, *openai.encode(t), 49407] for t in plain])
        if arguments.folder:
            from transformers import CLIPTokenizer
            hugging_face = CLIPTokenizer(str(arguments.folder / "vocab.json"), str(arguments.folder / "merges.txt"))
            wrong += report(f"transformers' CLIP, {kind}", plain, here, [hugging_face(t)["input_ids"] for t in plain])
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
