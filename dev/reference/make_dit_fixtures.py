"""Writes tests/fixtures/dit_*.safetensors and sampler.safetensors: what LightningDiT in PyTorch answers.

    python dev/reference/make_dit_fixtures.py             all files, and their paragraphs in tests/fixtures/README.md
    python dev/reference/make_dit_fixtures.py dit_p1      only this one

The models are those of lightningdit_twin.py, which check_lightningdit.py compares with the original; solvers are
torchdiffeq's. As in make_fixtures.py, all is computed in float64 and stored as float32, and parameters and inputs are
hashes of their names. No parameter is at its initial value, except in dit_steps, which is about the first steps.
Latents are NCHW, as in LightningDiT's files.
"""
import importlib.metadata
import math

import torch

from fixture_file import DTYPE, Fixture, backward_from, fill, parameter_gradients, run
from lightningdit_twin import LightningDiT

VERSIONS = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "torchdiffeq")}


def make_model(**config):
    """The twin in float64. Its tables are rounded to float32, as a checkpoint keeps them."""
    model = LightningDiT(**config)
    return model.to(DTYPE)


def fixture_of(kind, batch, config):
    return Fixture(model=kind, batch=batch, hidden=hidden_width(config), **config)


def hidden_width(config):
    """Of the MLP: int(2 / 3 * 4 dim) with SwiGLU, 4 dim with GELU."""
    return int(2 / 3 * (4 * config["dim"])) if config.get("swiglu", True) else 4 * config["dim"]


def randomise(model):
    """Fills every trained parameter and returns {name: (base, amplitude)}. A matrix keeps its input's size."""
    rules = {}
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad:
            continue
        fan_in = tensor[0].numel()
        if "norm" in name:
            rules[name] = 1.0, 0.25
        elif "embedding_table" in name:
            rules[name] = 0.0, 1.0
        elif tensor.dim() == 1:
            rules[name] = 0.0, 0.25
        else:
            rules[name] = 0.0, 2.0 ** round(math.log2(math.sqrt(3.0 / fan_in)))
        with torch.no_grad():
            tensor.copy_(fill(name, tensor.shape, *rules[name]))
    return rules


def add_labels(fixture, labels):
    """Labels are stored as float32, like everything; 7 is the null class here."""
    fixture.add("input.labels", torch.tensor(labels, dtype=DTYPE))
    return torch.tensor(labels)


# ---- The model -------------------------------------------------------------------------------------------------------

def dit(name, **config):
    """Output and the gradients of sum(output * dout) for a batch of 3 with a repeated label and the null class."""
    config = dict(depth=2, classes=7, qk_norm=False, swiglu=True, shift=True) | config
    fixture = fixture_of("lightningdit", 3, config)
    model = make_model(**config)
    fixture.parameters(model, randomise(model), generated=True)
    fixture.add("param.pos_embed", model.pos_embed)
    x = fill(f"{name}.x", (3, config["channels"], config["side"], config["side"]), amplitude=2.0)
    t = torch.tensor([0.0, 0.40625, 0.96875], dtype=DTYPE)
    fixture.add("input.x", x)
    fixture.add("input.t", t)
    labels = add_labels(fixture, [2, 7, 2])
    backward_from(fixture, "v", model(x, t, labels))
    fixture.gradients(parameter_gradients(model))
    return fixture


def dit_p1():
    """LightningDiT, patch 1: SwiGLU of 128, head size 16, no QK-norm. input.x [3, C, S, S], input.t, input.labels (7
    is the null class), output.v. param.pos_embed is the fixed table."""
    return dit("dit_p1", side=4, patch=1, channels=5, dim=48, heads=3)


def dit_p2_qk():
    """LightningDiT, patch 2, QK-norm: SwiGLU of 106, which is no multiple of 4, and head size 20."""
    return dit("dit_p2_qk", side=6, patch=2, channels=4, dim=40, heads=2, qk_norm=True)


def dit_p1_noshift():
    """LightningDiT, patch 1, modulation of the blocks without shift: four chunks scale, gate, scale, gate. SwiGLU of 85
    and head size 16."""
    return dit("dit_p1_noshift", side=6, patch=1, channels=4, dim=32, heads=2, shift=False)


def dit_p2_gelu_qk():
    """LightningDiT, patch 2, QK-norm, tanh-GELU MLP of width 192 (fc1, fc2), head size 24."""
    return dit("dit_p2_gelu_qk", side=4, patch=2, channels=5, dim=48, heads=2, qk_norm=True, swiglu=False)


# ---- Main ------------------------------------------------------------------------------------------------------------

CASES = (dit_p1, dit_p2_qk, dit_p1_noshift, dit_p2_gelu_qk)

if __name__ == "__main__":
    run(__doc__, CASES, VERSIONS)
