"""Writes tests/fixtures/captions.safetensors: a CLIP of the smallest size (clip-tiny of common/models/clip.h) with random
weights under Hugging Face's names, and what the originals make of drawn pictures and of captions with it.

    python dev/reference/make_captions_fixture.py      (needs torch, torchvision, transformers, pillow, safetensors)

crop.H.W and pad.H.W are the two inputs of common/measures/clip_input.h in [0, 1], by Pillow and torchvision; vectors and
scores are transformers' CLIPModel's, with its tokenizer; the aesthetic head is five linear layers as published.
"""
import json
import pathlib
import tempfile

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from check_text_models import randomise

SIDE, PICTURES = 12, [(12, 12), (40, 30), (17, 64), (9, 7), (97, 131)]
CAPTIONS = ["abc", "A red CIRCLE, on a gray background!", "ab abab don't 42", "", "word " * 100]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def picture(height, width):
    """That of make_crop_fixture.py."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    smooth = (y * (3 + c) + x * (5 - c)) % 511
    smooth = np.where(smooth > 255, 510 - smooth, smooth)
    edge = np.where((x // 37 + y // 29 + c) % 3 == 0, 120, 0)
    noise = ((y * 7919 + x * 104729 + c * 1299709) % 65537 * 31) % 97
    return Image.fromarray(np.clip(smooth + edge + noise - 60, 0, 255).astype(np.uint8))


def crop(image):
    return F.to_tensor(F.center_crop(F.resize(image, SIDE, InterpolationMode.BICUBIC), SIDE))


def pad(image):
    """The longer side to SIDE, black around; sizes by Python's round."""
    scale = SIDE / max(image.size)
    height, width = round(image.height * scale), round(image.width * scale)
    x = F.resize(F.to_tensor(image), [height, width], InterpolationMode.BICUBIC, antialias=True)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    return F.pad(x, [left, top, SIDE - width - left, SIDE - height - top])


def tokenizer():
    """Two merges, so that the vocabulary has 516 numbers."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    merges = ["a b", "ab c</w>"]
    words = names + [n + "</w>" for n in names] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder)


def main():
    text = CLIPTextConfig(hidden_act="quick_gelu", vocab_size=516, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
                          num_attention_heads=2, max_position_embeddings=77, bos_token_id=514, eos_token_id=515)
    vision = CLIPVisionConfig(hidden_act="quick_gelu", hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                              num_attention_heads=2, image_size=SIDE, patch_size=4)
    model = randomise(CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)), 1)
    model.logit_scale.fill_(3.25)
    out = {name: value.clone().contiguous() for name, value in model.state_dict().items() if "position_ids" not in name}
    images = [picture(*size) for size in PICTURES]
    for (height, width), image in zip(PICTURES, images):
        out[f"answer.crop.{height}.{width}"] = crop(image).permute(1, 2, 0).contiguous()
        out[f"answer.pad.{height}.{width}"] = pad(image).permute(1, 2, 0).contiguous()
    words = tokenizer()
    for k, caption in enumerate(CAPTIONS):
        out[f"answer.ids.{k}"] = torch.tensor(words(caption, truncation=True, max_length=77)["input_ids"]).float()
    ids = [words(caption, truncation=True, max_length=77, return_tensors="pt")["input_ids"] for caption in CAPTIONS]
    model.double()
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        t = torch.cat([unit(model.text_projection(model.text_model(input_ids=i).pooler_output)) for i in ids])
        for name, make in (("crop", crop), ("pad", pad)):
            x = torch.stack([(make(image) - MEAN) / STD for image in images]).double()
            v = unit(model.visual_projection(model.vision_model(pixel_values=x).pooler_output))
            out[f"answer.cosine.{name}"] = (v * t).sum(-1).float()
            if name == "crop":
                layers = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.Dropout(0.2), torch.nn.Linear(9, 7),
                                             torch.nn.Dropout(0.2), torch.nn.Linear(7, 5), torch.nn.Dropout(0.1),
                                             torch.nn.Linear(5, 3), torch.nn.Linear(3, 1)).double().eval()
                out["answer.aesthetic"] = layers(v)[:, 0].float()
    out |= {f"layers.{k}": v.float().contiguous() for k, v in layers.state_dict().items()}
    save_file(out, "tests/fixtures/captions.safetensors")
    print({k: v.tolist() for k, v in out.items() if k.startswith(("answer.cos", "answer.aes", "answer.ids.2"))})


torch.manual_seed(3)
main()
