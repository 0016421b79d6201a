"""Text to image at full size, with random weights: T5-large, CLIP L/14's text tower and the 2B transformer.

    python dev/reference/full_size_t2i.py make FOLDER --clip CLIP     # CLIP: a checkout of openai/CLIP, for its vocabulary
    python dev/reference/full_size_t2i.py draw FOLDER --points 5 --threads 2

make  writes t5/, clip/ (by transformers), spiece.model (trained on this project's own texts), merges.txt, and 2B.safetensors
      (4.5 GB, bf16, FLUX's names; it reads T5-large's rows, of 1024 values).
draw  a guided picture of 256 pixels in float32 without the decoder: transformers' encoders, mmdit_twin.py and Euler.
      Prints seconds: of loading, of both captions, of an evaluation.
dev/bench/full_size_t2i.sh has the programs of this project draw from the same files, and sets the times side by side.
"""
import argparse
import gzip
import json
import pathlib
import time

import safetensors.torch
import sentencepiece
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from mmdit_twin import SIZES, MMDiT

PROMPTS = ("a harbour in the morning, with two fishing boats and a lighthouse", "")
CHANNELS, SIDE, GUIDANCE, CLIP_END = 32, 16, 5.0, 49407


def transformer():
    dim, heads, doubles, singles, axes, _, vector = SIZES["2B"]
    return MMDiT(dim, heads, doubles, singles, axes, 1024, vector, CHANNELS)


def make(folder, clip):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    t5 = T5Config(feed_forward_proj="gated-gelu", vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16)
    T5EncoderModel(t5).save_pretrained(folder / "t5")
    CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                 num_attention_heads=12, hidden_act="quick_gelu")).save_pretrained(folder / "clip")
    root = pathlib.Path(__file__).parents[2]
    texts = [str(path) for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))]
    sentencepiece.SentencePieceTrainer.train(input=",".join(texts), model_prefix=str(folder / "spiece"), vocab_size=2000,
                                             pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    with gzip.open(clip / "clip" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[: 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    torch.set_default_dtype(torch.bfloat16)
    model = transformer().requires_grad_(False)
    for name, value in model.named_parameters():
        if not name.endswith("_norm.scale"):
            value.normal_(std=0.02)
    safetensors.torch.save_file(model.state_dict(), folder / "2B.safetensors")


def seconds(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


@torch.no_grad()
def draw(folder, points):
    def load():
        model = transformer().requires_grad_(False)
        model.load_state_dict(safetensors.torch.load_file(folder / "2B.safetensors"))
        return T5EncoderModel.from_pretrained(folder / "t5"), CLIPTextModel.from_pretrained(folder / "clip"), model

    def encode():
        rows = [pieces.encode(p) + [1] for p in PROMPTS]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        mask = torch.tensor([[i < len(r) for i in range(longest)] for r in rows])
        tokens = torch.full((2, 77), CLIP_END)
        tokens[:, 0] = CLIP_END - 1
        return t5(ids, attention_mask=mask).last_hidden_state, mask, clip(tokens).pooler_output

    def sample():
        x, times = torch.randn(1, SIDE, SIDE, CHANNELS), torch.linspace(1, 0, points).tolist()
        for t, after in zip(times, times[1:]):
            v, none = model(x.expand(2, -1, -1, -1), torch.full((2,), t), text, mask, pooled).chunk(2)
            x = x + (after - t) * (none + GUIDANCE * (v - none))
        return x

    pieces = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    (t5, clip, model), loading = seconds(load)
    (text, mask, pooled), encoding = seconds(encode)
    x, sampling = seconds(sample)
    print(json.dumps(dict(loading=round(loading, 2), captions=round(encoding, 3), evaluation=round(sampling / (points - 1), 3),
                          finite=bool(x.isfinite().all()), parameters=sum(p.numel() for p in model.parameters()))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "draw"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--clip", type=pathlib.Path, help="checkout of openai/CLIP")
    parser.add_argument("--points", type=int, default=5, help="of time, one more than evaluations")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "make":
        if not arguments.clip:
            parser.error("make needs --clip")
        make(arguments.folder, arguments.clip)
    else:
        draw(arguments.folder, arguments.points)


if __name__ == "__main__":
    main()
