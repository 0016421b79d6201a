"""Writes tests/fixtures/decoder_large.safetensors: what the modules of GigaTok's larger decoder answer.

    python dev/reference/make_gigatok_fixture.py GIGATOK      GIGATOK: a checkout of github.com/SilentView/GigaTok

The transformer is the original class with its forward, built narrower than any of the widths that it knows by name. As
in make_fixtures.py, all is computed in float64, and parameters and inputs are hashes of their names. Before that the
decoder of the paper's ablation is instantiated at full size, without memory, and its parameters are counted.
"""
import importlib.metadata
import math
import pathlib
import sys

import torch
from torch import nn

from fixture_file import DTYPE, Fixture, backward_from, fill, nhwc, parameter_gradients, run

if len(sys.argv) < 2 or not pathlib.Path(sys.argv[1], "tokenizer").is_dir():
    sys.exit(__doc__)
sys.path.insert(0, sys.argv.pop(1))
from tokenizer.tokenizer_image.vq.blocks import Decoder, TransformerLayer, ViTDecoder2D  # noqa: E402

VERSIONS = {"torch": importlib.metadata.version("torch").split("+")[0]}
CNN = dict(adaptive_gn=True, d2s_up=True, use_attn=False)


class NarrowViTDecoder2D(ViTDecoder2D):
    """The members that the original's forward reads, in any size."""

    def __init__(self, width, layers, heads, grid, token_size):
        nn.Module.__init__(self)
        self.transformer_layer_type = "TransformerLayer"
        self.width, self.num_layers, self.grid_size, self.out_inner_feat = width, layers, grid, False
        self.decoder_embed = nn.Linear(token_size, width)
        self.ln_pre = nn.LayerNorm(token_size)
        self.positional_embedding = nn.Parameter(torch.empty(grid**2, 1, width))
        self.transformer = nn.ModuleList(TransformerLayer(width, heads, dropout=0.0) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, token_size, kernel_size=3, padding=1)


def check_full_size():
    with torch.device("meta"):
        tokens = ViTDecoder2D(model_size="large", token_size=32, transformer_layer_type="TransformerLayer")
        cnn = Decoder(z_channels=32, **CNN)
        narrow = NarrowViTDecoder2D(1024, 24, 16, 16, 32)
    counts = [sum(p.numel() for p in module.parameters()) for module in (tokens, cnn)]
    assert counts == [302_902_368, 48_383_491], counts
    assert {k: v.shape for k, v in tokens.state_dict().items()} == {k: v.shape for k, v in narrow.state_dict().items()}


def randomise(model):
    """Fills every parameter and returns {name: (base, amplitude)}. A matrix keeps about its input's size."""
    rules = {}
    model.to(DTYPE)
    for name, tensor in model.named_parameters():
        fan_in = tensor[0].numel()
        if tensor.dim() == 1 and ("norm" in name or ".ln_" in name) and name.endswith("weight"):
            rules[name] = 1.0, 0.25
        elif tensor.dim() == 1:
            rules[name] = 0.0, 0.25
        elif "positional" in name:
            rules[name] = 0.0, 0.5
        else:
            rules[name] = 0.0, 2.0 ** round(math.log2(1.5 * math.sqrt(3.0 / fan_in)))
        with torch.no_grad():
            tensor.copy_(fill(name, tensor.shape, *rules[name]))
    return rules


def decoder_large():
    """GigaTok's larger decoder: a transformer of two layers, then a CNN of two levels with 128 and 64 channels, adaptive
    norms and depth-to-space."""
    config = dict(dim=24, depth=2, heads=3, grid=4, ch=64, ch_mult=(1, 2), num_res_blocks=1, z_channels=8)
    model = nn.ModuleDict({
        "s2ddecoder": NarrowViTDecoder2D(config["dim"], config["depth"], config["heads"], config["grid"],
                                         config["z_channels"]),
        "decoder": Decoder(z_channels=config["z_channels"], ch=config["ch"], ch_mult=config["ch_mult"],
                           num_res_blocks=config["num_res_blocks"], **CNN)})
    fixture = Fixture(model="decoder_large", batch=2, **config)
    fixture.parameters(model, randomise(model), generated=True)
    shape = (2, config["z_channels"], config["grid"], config["grid"])
    z = fill("input.z", shape, amplitude=2.0).requires_grad_()
    fixture.image("input.z", z)
    u = model["s2ddecoder"](z)
    fixture.image("output.tokens", u)
    backward_from(fixture, "image", model["decoder"](u), nhwc)
    fixture.image("dinput.z", z.grad)
    fixture.gradients(parameter_gradients(model), sampled=True)
    return fixture


if __name__ == "__main__":
    check_full_size()
    run(__doc__, (decoder_large,), VERSIONS)
