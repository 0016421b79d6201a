"""T5 and CLIP by transformers, with random weights, beside common/models/t5.h and clip.h: each model is saved by
transformers itself, whole, in several files and as PyTorch's, under OpenAI's names, and check_text_models loads it.

    make build/cpu/check_text_models
    python dev/reference/check_text_models.py build/cpu/check_text_models FOLDER [--full]

--full: T5-small and T5-large, CLIP B/32, L/14 and H/14 at their real sizes (20 GB in FOLDER, 12 GB of memory). Nothing is
downloaded.
"""
import argparse
import pathlib
import subprocess
import sys

import safetensors.torch
import torch
from transformers import (CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, T5Config, T5EncoderModel,
                          T5ForConditionalGeneration)

failures = 0


def check(program, weights, answers):
    global failures
    run = subprocess.run([program, str(weights), str(answers)], capture_output=True, text=True)
    print(run.stdout + run.stderr, end="", flush=True)
    failures += run.returncode != 0


def randomise(model, scale):
    """Weights that make every part count; initialisation leaves biases at 0 and norms at 1."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        with torch.no_grad():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name.lower() or "layrnorm" in name:
                value.copy_(0.2 * noise + (1 if "weight" in name else 0))
            elif value.ndim >= 2 and "embedding" not in name and "shared" not in name:
                value.copy_(noise * scale / value[0].numel() ** 0.5)
            else:
                value.copy_(0.3 * noise)
    return model.eval().requires_grad_(False)


def save(model, folder):
    """As one file, in several, and as PyTorch's; returns the paths."""
    size = sum(p.numel() for p in model.parameters()) * 4
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "parts", max_shard_size=size // 3)
    if not (folder / "parts" / "model.safetensors.index.json").exists():
        print("   (it was too small for several files)")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder / "whole" / "model.safetensors", folder / "parts", folder / "pytorch_model.bin"


def check_t5(program, folder, decoder, **sizes):
    config = T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)
    model = randomise((T5ForConditionalGeneration if decoder else T5EncoderModel)(config), 1)
    for name, value in model.named_parameters():
        if name.endswith(".q.weight"):
            value.mul_(config.d_kv ** -0.5)  # as T5 begins: its scores are not divided by that
    counts = torch.tensor([40, 1, 17, 33])
    ids = torch.randint(0, config.vocab_size, (4, 40), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(40)[None] < counts[:, None]
    encoder = model.encoder.double()
    rows = encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    encoder.float()
    folder.mkdir(parents=True, exist_ok=True)
    answers = {"t5.ids": ids.float(), "t5.counts": counts.float(), "t5.rows": rows.float().contiguous()}
    safetensors.torch.save_file(answers, folder / "answers.safetensors")
    for path in save(model, folder):
        check(program, path, folder / "answers.safetensors")


def openai_names(state):
    """The state of transformers' model under OpenAI's names."""
    out, rename = {}, (("text_model.embeddings.token_embedding", "token_embedding"),
                       ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
                       ("text_model.final_layer_norm", "ln_final"), ("text_model.encoder.layers", "transformer.resblocks"),
                       ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
                       ("vision_model.embeddings.patch_embedding", "visual.conv1"),
                       ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
                       ("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
                       ("vision_model.encoder.layers", "visual.transformer.resblocks"), ("layer_norm1", "ln_1"),
                       ("layer_norm2", "ln_2"), ("self_attn.out_proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
                       ("mlp.fc2", "mlp.c_proj"))
    for name, value in state.items():
        if name.endswith("position_ids"):
            continue
        if name in ("text_projection.weight", "visual_projection.weight"):
            out["text_projection" if name[0] == "t" else "visual.proj"] = value.T.contiguous()
            continue
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([state[name.replace("q_proj", part + "_proj")] for part in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for theirs, openai in rename:
            name = name.replace(theirs, openai)
        out[name] = value
    return out


def check_clip(program, folder, text, vision, embed, act, small):
    text = CLIPTextConfig(hidden_act=act, bos_token_id=text["vocab_size"] - 2, eos_token_id=text["vocab_size"] - 1, **text)
    vision = CLIPVisionConfig(hidden_act=act, **vision)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=embed)
    model = randomise(CLIPModel(config), 1)
    T, end, generator = text.max_position_embeddings, text.vocab_size - 1, torch.Generator().manual_seed(2)
    ids = torch.randint(0, end, (3, T), generator=generator)
    for b, length in enumerate((T, 2, T // 2)):
        ids[b, length - 1:] = end
    image = 2 * torch.rand((3, 3, vision.image_size, vision.image_size), generator=generator, dtype=torch.float64) - 1
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)[:, None, None]
    model.double()
    pooled = model.text_model(input_ids=ids).pooler_output
    seen = model.vision_model(pixel_values=((image + 1) / 2 - mean) / std).pooler_output
    answers = {"clip.ids": ids.float(), "clip.pooled": pooled.float()}
    if small:
        numbers = [embed, act == "quick_gelu", vision.patch_size, vision.image_size // vision.patch_size,
                   vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size,
                   text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size, T,
                   text.vocab_size]
        answers["clip.config"] = torch.tensor([int(v) for v in numbers], dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(answers, folder / "text.safetensors")
    answers |= {"clip.text": model.text_projection(pooled).float(), "clip.image": model.visual_projection(seen).float(),
                "clip.pixels": image.permute(0, 2, 3, 1).float().contiguous()}
    safetensors.torch.save_file(answers, folder / "answers.safetensors")
    model.float()
    for path in save(model, folder):
        check(program, path, folder / "answers.safetensors")
    torch.save({"state_dict": openai_names(model.state_dict())}, folder / "openai.pt")
    check(program, folder / "openai.pt", folder / "answers.safetensors")
    alone = CLIPTextModel(text)
    state = {k.removeprefix("text_model."): v for k, v in model.text_model.state_dict().items()}
    wanted = alone.state_dict()
    alone.load_state_dict({k: state[k.removeprefix("text_model.")] for k in wanted})
    alone.save_pretrained(folder / "alone")
    check(program, folder / "alone", folder / "text.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program", help="build/cpu/check_text_models")
    parser.add_argument("folder", type=pathlib.Path, help="folder to write to")
    parser.add_argument("--full", action="store_true", help="real sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    program, folder = arguments.program, arguments.folder
    check_t5(program, folder / "t5", False, vocab_size=100, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=5)
    check_t5(program, folder / "t5_whole", True, vocab_size=100, d_model=32, d_kv=4, d_ff=16, num_layers=2, num_heads=3)
    text = dict(vocab_size=99, hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=3,
                max_position_embeddings=11)
    vision = dict(hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=5, image_size=28, patch_size=7)
    check_clip(program, folder / "clip", text, vision, 20, "quick_gelu", True)
    check_clip(program, folder / "clip_gelu", text, vision, 20, "gelu", True)
    wide = dict(vision, hidden_size=160, num_attention_heads=2)  # heads of 80, as in H/14's image tower
    check_clip(program, folder / "clip_80", text, wide, 20, "gelu", True)
    if arguments.full:
        check_t5(program, folder / "t5_small", False, vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8,
                 num_heads=6)
        check_t5(program, folder / "t5_large", False, vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24,
                 num_heads=16)
        vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224,
                      patch_size=32)
        text = dict(vocab_size=49408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
                    max_position_embeddings=77)
        check_clip(program, folder / "clip_b32", text, vision, 512, "quick_gelu", False)
        vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
                      patch_size=14)
        text = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                    max_position_embeddings=77)
        check_clip(program, folder / "clip_l14", text, vision, 768, "quick_gelu", False)
        vision = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
                      patch_size=14)
        text = dict(vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                    max_position_embeddings=77)
        check_clip(program, folder / "clip_h14", text, vision, 1024, "gelu", False)
    print(f"{failures} differ")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
