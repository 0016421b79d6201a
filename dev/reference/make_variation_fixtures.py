"""Writes vit_lora.safetensors and stage2_tokens.safetensors: variations of the tokenizer's stage 2 as PyTorch has them.

    python dev/reference/make_variation_fixtures.py             both, and their paragraphs in tests/fixtures/README.md
    python dev/reference/make_variation_fixtures.py vit_lora    only this one

The low-rank pairs are PEFT's, on timm's VisionTransformer. As in make_fixtures.py, all is computed in float64 and
stored as float32, and parameters and inputs are hashes of their names. Look next at that file, whose models are used
here.
"""
import functools
import importlib.metadata
import math

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import nn

from fixture_file import DTYPE, Fixture, backward_from, fill, parameter_gradients, philox, run
from make_fixtures import (STAGE2_DECODER, STAGE2_VIT, Adapter, NLayerDiscriminator, adaptive_weight, away_from_kinks,
                           discriminator_loss, encode, encoder_input, make_decoder, make_lpips, make_vit, nhwc,
                           randomise, stage2_forward)

VERSIONS = {name: importlib.metadata.version(name).split("+")[0]
            for name in ("torch", "timm", "peft", "lpips", "taming-transformers")}


# ---- Low-rank pairs --------------------------------------------------------------------------------------------------

DROPOUT_STREAM = 4  # RANDOM_DROPOUT of common/program/rng.h


class Dropout(nn.Module):
    """torch.nn.Dropout with a mask that the C code can draw too: that of the pass's images in the whole batch."""

    def __init__(self, p, seed, step, first_image):
        super().__init__()
        self.p, self.seed, self.step, self.first_image = p, seed, step, first_image

    def forward(self, x):
        row, begin = x[0].numel(), self.first_image * x[0].numel()
        end = begin + x.shape[0] * row
        words = philox(self.seed, DROPOUT_STREAM, self.step, -(-end // 4))[begin:end]
        keep = (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24) >= np.float32(self.p)
        return x * torch.from_numpy(keep).reshape(x.shape) / (1 - self.p)


def vit_lora():
    """timm's ViT with PEFT's low-rank pairs at the four linear layers of each block: output.tokens with dropout, by
    masks of common/program/rng.h (seed, step and number of the first image in the config; pairs count in the order of
    the file's layers), and the gradients of the pairs; output.eval_tokens without dropout. PEFT's merged weights give
    the latter to 1e-12, as was checked when this file was made."""
    config = dict(patch=14, pos_grid=5, embed=24, heads=3, depth=2, layerscale=True, gelu="exact", class_token=True,
                  registers=0, pos_prefix=True, mlp=96, eps=1e-6, height=56, width=42, batch=2)
    lora = dict(rank=3, alpha=5, dropout_percent=25, seed=20, step=11, first_image=3)
    vit = make_vit(config)
    fixture = Fixture(model="vit_lora", **config, **lora)
    fixture.parameters(vit, randomise(vit, gain=1.5))
    layers = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
    peft.inject_adapter_in_model(peft.LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=layers), vit)
    vit.to(DTYPE)
    pairs = [(name, module) for name, module in vit.named_modules() if isinstance(module, peft.tuners.lora.Linear)]
    trained = {}
    for name, module in pairs:
        for letter in "AB":
            weight = getattr(module, f"lora_{letter}")["default"].weight
            key = f"{name}.lora_{letter}.weight"
            amplitude = 2.0 ** round(math.log2(math.sqrt(3.0 / weight.shape[1])))
            with torch.no_grad():
                weight.copy_(fill(key, weight.shape, 0.0, amplitude))
            fixture.add(f"param.{key}", weight)
            trained[key] = weight
    assert len(pairs) == 8 and {id(p) for p in vit.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    image = fill("input.image", (2, 3, config["height"], config["width"]), amplitude=2.0)
    fixture.image("input.image", image)
    with torch.no_grad():
        plain = encode(vit, image)
    fixture.add("output.eval_tokens", plain)
    for index, (_, module) in enumerate(pairs):
        module.lora_dropout["default"] = Dropout(lora["dropout_percent"] / 100, lora["seed"],
                                                 lora["step"] * len(pairs) + index, lora["first_image"])
    backward_from(fixture, "tokens", encode(vit, image))
    fixture.gradients({key: weight.grad for key, weight in trained.items()})
    for _, module in pairs:
        module.merge()
    with torch.no_grad():
        assert (encode(vit, image) - plain).abs().max() < 1e-12 < 1e-2 < (plain - plain.mean()).abs().max()
    return fixture


# ---- The semantic loss at the tokens ---------------------------------------------------------------------------------

def tokens_chunk(model, image, chunks):
    """As stage2_chunk of make_fixtures.py, but the semantic loss compares the tokens of vit and previous.vit."""
    out = stage2_forward(model, image)
    pixels = encoder_input(image)[1]
    tokens, tokens0 = encode(model["vit"], pixels), encode(model["previous"]["vit"], pixels).detach()
    nll, loss_g, loss_sem = out["nll"], out["loss_g"], F.mse_loss(tokens, tokens0)
    conv_out, vit_fc2 = model["decoder"].conv_out, model["vit"].blocks[-1].mlp.fc2
    omega_g, (out["norm_nll_g"], out["norm_g"]) = adaptive_weight(nll, loss_g, conv_out.weight, 0.5, 1e4)
    omega_s, (out["norm_nll_s"], out["norm_s"]) = adaptive_weight(nll, loss_sem, vit_fc2.weight, 1.0, 1e8)
    generator = [p for part in ("vit", "adapter", "decoder") for p in model[part].parameters()]
    ((nll + omega_g * loss_g + omega_s * loss_sem) / chunks).backward(inputs=generator)
    real, fake = model["discriminator"](image), model["discriminator"](out["image"].detach())
    out |= dict(omega_g=omega_g, omega_s=omega_s, logits_real=real, logits_fake=fake, loss_sem=loss_sem,
                tokens0=tokens0)
    out["loss_d"] = discriminator_loss(real, fake)
    del out["z0"]
    return out


def stage2_tokens(seed=18):
    """A step of stage 2 as in stage2_step, with the semantic loss before the adapter: the mean squared difference of
    the tokens of vit and of previous.vit, another network; omega_s is taken at the last block's mlp.fc2.weight.
    Gradients of vit, adapter and decoder, averages over the two chunks."""
    fixture = Fixture(model="stage2_tokens", height=32, width=48, batch=4, chunk=2, adapter_hidden=16, ndf=8,
                      n_layers=3, lpips_base_channels=4, w_g=0.5, w_sp=1.0, vit=STAGE2_VIT, decoder=STAGE2_DECODER)
    channels = STAGE2_DECODER["z_channels"]
    make_adapter = functools.partial(Adapter, 24, 16, channels)
    model = nn.ModuleDict({
        "vit": make_vit(STAGE2_VIT), "adapter": make_adapter(), "decoder": make_decoder(STAGE2_DECODER),
        "lpips": make_lpips(4), "discriminator": NLayerDiscriminator(ndf=8, n_layers=3),
        "previous": nn.ModuleDict({"vit": make_vit(STAGE2_VIT), "adapter": make_adapter()})})
    fixture.parameters(model, randomise(model), generated=True)
    image = fill(f"stage2_tokens.image.{seed}", (4, 3, 32, 48))
    fixture.image("input.image", image)
    outputs = []
    with away_from_kinks(model, fixture.margins):
        for chunk in image.split(2):
            outputs.append(tokens_chunk(model, chunk, chunks=2))
            fixture.margins.append(float((chunk - outputs[-1]["image"].detach()).abs().min()))
    for name in outputs[0]:
        parts = [out[name].detach() for out in outputs]
        joined = torch.stack(parts) if parts[0].dim() == 0 else torch.cat(parts)
        fixture.add(f"output.{name}", nhwc(joined) if joined.dim() == 4 else joined)
    fixture.gradients(parameter_gradients(model), sampled=True)
    return fixture


if __name__ == "__main__":
    run(__doc__, (vit_lora, stage2_tokens), VERSIONS)
