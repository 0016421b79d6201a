"""Writes common/text/unicode_tables.h from Python's unicodedata.

    python3.11 dev/reference/make_unicode_tables.py > common/text/unicode_tables.h      # Unicode 14, as CLIP's tokenizer
"""
import sys
import unicodedata

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(value):
    """(first, last, value) of neighbours that share a value other than None."""
    found = []
    for c in CODES:
        v = value(c)
        if v is None:
            continue
        if found and found[-1][1] == c - 1 and found[-1][2] == v:
            found[-1][1] = c
        else:
            found.append([c, c, v])
    return found


def lower_runs():
    """(first, last, step, what is added): capitals and small letters often alternate."""
    found = []
    for c in CODES:
        low = chr(c).lower()
        if len(low) != 1 or ord(low) == c:  # U+0130 alone becomes two: common/text/unicode.h
            continue
        add = ord(low) - c
        if found and found[-1][3] == add:
            first, last, step, _ = found[-1]
            if c - last <= 2 and (first == last or c - last == step):
                found[-1] = [first, c, c - last, add]
                continue
        found.append([c, c, 1, add])
    return found


def decompositions():
    """(code, first, second or 0), of which those that NFC never puts together again have their highest bit set."""
    found = []
    for c in CODES:
        text = unicodedata.decomposition(chr(c))
        if not text or text[0] == "<":
            continue
        parts = [int(part, 16) for part in text.split()]
        again = unicodedata.normalize("NFC", chr(c)) == chr(c)
        found.append([c if again else c | 1 << 31, *parts, *[0] * (2 - len(parts))])
    return found


def write(comment, kind, name, rows):
    cells = ["{" + ",".join(hex(v) if v > 255 else str(v) for v in row) + "}," for row in rows]
    print(f"\n// {comment}\nstatic const {kind} {name}[{len(rows)}] = {{")
    line = "   "
    for cell in cells:
        if len(line) + 1 + len(cell) > 118:
            print(line)
            line = "   "
        line += " " + cell
    print(line + "\n};")


def main():
    category = unicodedata.category
    print(f"""// unicode_tables.h: what letters, numbers, small letters and accents are, in Unicode {unicodedata.unidata_version}.
// Written by dev/reference/make_unicode_tables.py, not by hand. Look next at common/text/unicode.h, which reads it.
#pragma once
#include <stdint.h>

typedef struct {{ uint32_t first, last; }} unicode_range_t;
typedef struct {{ uint32_t first, last; int step, add; }} unicode_lower_t; // each step-th code point: + add
typedef struct {{ uint32_t first, last, value; }} unicode_class_t;
typedef struct {{ uint32_t code, first, second; }} unicode_pair_t;""")
    letters = [r[:2] for r in ranges(lambda c: 1 if category(chr(c))[0] == "L" else None)]
    numbers = [r[:2] for r in ranges(lambda c: 1 if category(chr(c))[0] == "N" else None)]
    write("Categories L*", "unicode_range_t", "unicode_letters", letters)
    write("Categories N*", "unicode_range_t", "unicode_numbers", numbers)
    write("Small letters, those of one code point", "unicode_lower_t", "unicode_lowers", lower_runs())
    write("Canonical combining classes other than 0", "unicode_class_t", "unicode_classes",
          ranges(lambda c: unicodedata.combining(chr(c)) or None))
    write("Canonical decompositions without Hangul: code = first second, or first alone (second 0). The highest bit of\n"
          "// code is set where NFC does not put it together again.",
          "unicode_pair_t", "unicode_pairs", decompositions())


if __name__ == "__main__":
    sys.exit(main())
