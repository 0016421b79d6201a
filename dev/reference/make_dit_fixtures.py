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

import numpy as np
import torch
import torchdiffeq

from fixture_file import DTYPE, Fixture, backward_from, fill, parameter_gradients, run, uniform
from lightningdit_twin import LightningDiT, flow_loss, flow_pair, guided_velocity, time_grid

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


def dit_classic():
    """DiT and SiT, patch 2: LayerNorm without weight, no rotation, tanh-GELU MLP of width 160, head size 20; output.v
    has eight channels for the latent's four."""
    return dit("dit_classic", side=6, patch=2, channels=4, dim=40, heads=2, swiglu=False, classic=True, sigma=True)


# ---- Ten steps of training -------------------------------------------------------------------------------------------

STEPS, BATCH = 10, 4


def normal(name, shape):
    """Standard normal numbers from two hashed sequences (Box and Muller), rounded to float32."""
    count = math.prod(shape)
    radius = torch.sqrt(-2 * torch.log((1 - torch.from_numpy(uniform(f"{name}.radius", count))) / 2))
    angle = math.pi * torch.from_numpy(uniform(f"{name}.angle", count))
    return (radius * torch.cos(angle)).float().to(DTYPE).reshape(shape)


@torch.no_grad()
def initialise(fixture, model):
    """LightningDiT's initial values, from hashes: Xavier's bound is the amplitude; normal numbers are stored whole."""
    embeddings = ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight")
    for name, tensor in model.named_parameters():
        if not tensor.requires_grad or name in embeddings:
            value = 0.02 * normal(name, tensor.shape) if tensor.requires_grad else tensor
            tensor.copy_(value.float())
            fixture.add(f"param.{name}", tensor)
            continue
        zero = tensor.dim() == 1 or "adaLN" in name or name == "final_layer.linear.weight"
        bound = 0.0 if zero else math.sqrt(6 / (len(tensor) + tensor[0].numel()))
        rule = 1.0 if "norm" in name else 0.0, float(np.float32(bound))
        tensor.copy_(fill(name, tensor.shape, *rule))
        fixture.add(f"generate.{name}", [*rule, tensor.numel()])


def draw_steps(config):
    """Data, noise, times (logit-normal), and labels of which some are the null class, for all steps."""
    shape = (STEPS, BATCH, config["channels"], config["side"], config["side"])
    labels = torch.from_numpy(((uniform("dit_steps.labels", STEPS * BATCH) + 1) * 4).astype(int)).reshape(STEPS, BATCH)
    return dict(x1=normal("dit_steps.x1", shape), x0=normal("dit_steps.x0", shape),
                t=torch.sigmoid(normal("dit_steps.t", (STEPS, BATCH))).float().to(DTYPE), labels=labels)


def train(model, draw, lr, betas, eps, ema):
    """AdamW without decay on mean squared error + (1 - cosine); returns losses and norms by step, and the averages."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, betas=betas, eps=eps, weight_decay=0.0)
    average = {name: p.detach().clone() for name, p in trained.items()}
    history = dict(mse=[], cosine=[], gradient_norm=[])
    for x1, x0, t, labels in zip(*draw.values()):
        x, u = flow_pair(x1, x0, t)
        mse, cosine = flow_loss(model(x, t, labels), u)
        optimizer.zero_grad()
        (mse + cosine).backward()
        norm = torch.stack([p.grad.norm() for p in trained.values()]).norm()
        optimizer.step()
        for name, p in trained.items():
            average[name] = ema * average[name] + (1 - ema) * p.detach()
        for kind, value in zip(history, (mse, cosine, norm)):
            history[kind].append(float(value.detach()))
    return history, trained, average


def dit_steps():
    """Ten training steps of a LightningDiT with QK-norm from its initial values: loss mean squared error + mean of
    1 - cosine at x_t = t x1 + (1 - t) x0, AdamW without decay, moving average. Inputs, losses and the norm of all
    gradients have one row a step. In step 1 the output is zero everywhere, so the cosine's gradient is 1e8 / (B S S)
    times a direction, and only final_layer.linear has a gradient."""
    config = dict(side=4, patch=1, channels=4, dim=32, depth=2, heads=2, classes=7, qk_norm=True)
    optimizer = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, ema=0.9)
    fixture = Fixture(model="lightningdit", batch=BATCH, steps=STEPS, hidden=hidden_width(config), swiglu=True,
                      shift=True, **config, **optimizer)
    model = make_model(**config)
    initialise(fixture, model)
    draw = draw_steps(config)
    for name, value in draw.items():
        fixture.add(f"input.{name}", value)
    history, trained, average = train(model, draw, **optimizer)
    for name, values in history.items():
        fixture.add(f"output.{name}", values)
    for name in trained:
        fixture.add(f"after.{name}", trained[name])
        fixture.add(f"ema.{name}", average[name])
    return fixture


# ---- Solvers ---------------------------------------------------------------------------------------------------------

def sampler():
    """From noise to latents with a small LightningDiT (parameters as in the other files): the states at the times
    output.times, one row each. euler, midpoint, heun2, heun3, rk4: torchdiffeq's fixed-grid solvers, 2 images.
    euler_cfg, midpoint_cfg: with guidance on the first 3 channels from t = cfg_start on; euler_cfg_all: on all
    channels. dopri5, dopri5_cfg: the first image alone, with its own step sizes; the last row is what counts. Where
    the guidance sets in, dopri5_cfg rejects steps. evaluations: calls of the velocity."""
    config = dict(side=4, patch=1, channels=5, dim=32, depth=2, heads=2, classes=7)
    points, shift, cfg = 7, 0.3, dict(weight=3.0, start=0.3)
    fixture = Fixture(model="lightningdit", batch=2, hidden=hidden_width(config), qk_norm=False, swiglu=True,
                      shift=True, points=points, time_shift=shift, cfg=cfg["weight"], cfg_start=cfg["start"],
                      cfg_channels=3, rtol=1e-3, atol=1e-6, evaluations={}, **config)
    model = make_model(**config)
    fixture.parameters(model, randomise(model), generated=True)
    fixture.add("param.pos_embed", model.pos_embed)
    noise = normal("sampler.noise", (2, config["channels"], config["side"], config["side"]))
    fixture.add("input.noise", noise)
    labels = add_labels(fixture, [2, 5])
    times = time_grid(points, shift)
    fixture.add("output.times", times)
    calls = fixture.config["evaluations"]

    @torch.no_grad()
    def solve(name, method, count=2, **options):
        def velocity(t, x):
            calls[name] = calls.get(name, 0) + 1
            return guided_velocity(model, x, t, labels[:count], **options)
        states = torchdiffeq.odeint(velocity, noise[:count], times, method=method, rtol=1e-3, atol=1e-6)
        fixture.add(f"output.{name}", states)

    for method in ("euler", "midpoint", "heun2", "heun3", "rk4"):
        solve(method, method)
    solve("euler_cfg", "euler", **cfg)
    solve("midpoint_cfg", "midpoint", **cfg)
    solve("euler_cfg_all", "euler", guided=config["channels"], **cfg)
    solve("dopri5", "dopri5", count=1)
    solve("dopri5_cfg", "dopri5", count=1, **cfg)
    return fixture


# ---- Main ------------------------------------------------------------------------------------------------------------

CASES = (dit_p1, dit_p2_qk, dit_p1_noshift, dit_p2_gelu_qk, dit_classic, dit_steps, sampler)

if __name__ == "__main__":
    run(__doc__, CASES, VERSIONS)
