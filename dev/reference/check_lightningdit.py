"""Compares lightningdit_twin.py with the original: hustvl/LightningDiT, a checkout of which is the argument.

    git clone https://github.com/hustvl/LightningDiT
    python dev/reference/check_lightningdit.py LightningDiT           one JSON object a line; fails above the bounds

Weights, modulation and output layer included, are random and never at their initial value. Compared are, in float64 and
float32: the outputs, the gradient of every parameter (the largest ||a - b|| / ||b|| of any tensor), loss and gradient
of one training step, and the states that the original's sampler passes through, with guidance and without. In float64
the original still makes its rotation tables and time features in float32: they are the rest of its difference.
Needs timm, einops, scipy and torchdiffeq. fairscale, which the original imports without use, becomes empty names.
"""
import argparse
import contextlib
import json
import os
import sys
import types

import torch
from torch import nn

from fixture_file import fill
from lightningdit_twin import LightningDiT, flow_loss, flow_pair, guided_velocity, time_grid
from make_dit_fixtures import randomise

BOUND = {torch.float64: 1e-6, torch.float32: 2e-5}
CASES = [dict(patch=patch, side=side, qk_norm=qk_norm, swiglu=swiglu, shift=shift)
         for patch, side in ((1, 5), (2, 6)) for qk_norm in (False, True)
         for swiglu, shift in ((True, True), (False, True), (True, False))]
SHAPE = dict(channels=5, dim=96, depth=3, heads=4, classes=7)


def import_original(folder):
    """Its modules, uncompiled, and its transport package."""
    torch.compile = lambda f=None, **options: f if f else lambda g: g
    names = {"fairscale": (), "fairscale.nn": (), "fairscale.nn.model_parallel": (),
             "fairscale.nn.model_parallel.initialize": (),
             "fairscale.nn.model_parallel.layers": ("ColumnParallelLinear", "ParallelEmbedding", "RowParallelLinear")}
    for name, members in names.items():
        module = types.ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member, nn.Module)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    os.environ["XFORMERS_DISABLED"] = "1"
    sys.path.insert(0, str(folder))
    import models.lightningdit
    import transport
    return models.lightningdit, transport


def make_original(original, config):
    """The original's class with the arguments that mean the same."""
    return original.LightningDiT(
        input_size=config["side"], patch_size=config["patch"], in_channels=SHAPE["channels"],
        hidden_size=SHAPE["dim"], depth=SHAPE["depth"], num_heads=SHAPE["heads"], num_classes=SHAPE["classes"],
        use_qknorm=config["qk_norm"], use_swiglu=config["swiglu"], use_rope=True, use_rmsnorm=True,
        wo_shift=not config["shift"])


@contextlib.contextmanager
def keep(dtype):
    """Within this context Tensor.float, by which the original's norms go to float32, leaves float64 as it is."""
    original = torch.Tensor.float
    if dtype == torch.float64:
        torch.Tensor.float = lambda self: self
    try:
        yield
    finally:
        torch.Tensor.float = original


def difference(got, want):
    return float((got - want).norm() / want.norm())


def make_pair(original, config, dtype):
    twin = LightningDiT(**SHAPE, **config).to(dtype)
    randomise(twin)
    other = make_original(original, config).to(dtype).eval()  # eval: labels stay as they are
    names = {name: tuple(tensor.shape) for name, tensor in other.state_dict().items()}
    assert names == {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}, "names or shapes differ"
    table = difference(twin.pos_embed, other.pos_embed.detach())
    other.load_state_dict({**other.state_dict(), **dict(twin.named_parameters())})  # keeps its own rotation tables
    return twin, other, table


def inputs(config, dtype):
    shape = (3, SHAPE["channels"], config["side"], config["side"])
    draw = [fill(f"check.{name}", shape, amplitude=2.0).to(dtype) for name in ("x1", "x0", "dv")]
    return *draw, torch.tensor([0.0625, 0.5, 0.96875], dtype=dtype), torch.tensor([2, SHAPE["classes"], 2])


def largest_gradient_difference(twin, other, loss, other_loss):
    pairs = {}
    for model, value in ((twin, loss), (other, other_loss)):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, gradient in zip(trained, torch.autograd.grad(value, list(trained.values()))):
            pairs.setdefault(name, []).append(gradient)
    assert all(len(pair) == 2 for pair in pairs.values()), "other parameters are trained"
    return max((difference(*pair), name) for name, pair in pairs.items())


def compare_model(original, transport, config, dtype):
    """Output, gradients of sum(v dv), and those of the loss; the original's training_losses gets its own draw of t and
    x0 replaced by ours."""
    twin, other, table = make_pair(original, config, dtype)
    x1, x0, dv, t, labels = inputs(config, dtype)
    flow = transport.create_transport(use_cosine_loss=True, use_lognorm=True)
    flow.sample = lambda data, *unused: (t, x0, data)
    with keep(dtype):
        v, want = twin(x1, t, labels), other(x1, t, labels)
        gradient, name = largest_gradient_difference(twin, other, (v * dv).sum(), (want * dv).sum())
        terms = flow.training_losses(other, x1, dict(y=labels))
        mse, cosine = flow_loss(twin(flow_pair(x1, x0, t)[0], t, labels), x1 - x0)
        want_mse, want_cosine = terms["loss"].mean(), terms["cos_loss"].mean()
        step, _ = largest_gradient_difference(twin, other, mse + cosine, want_mse + want_cosine)
    return dict(positions=table, output=difference(v.detach(), want.detach()), gradient=gradient, of=name,
                mse=difference(mse.detach(), want_mse.detach()),
                cosine=difference(cosine.detach(), want_cosine.detach()), loss_gradient=step)


@torch.no_grad()
def compare_sampler(original, transport, weight, start):
    """Euler from the original's Sampler and forward_with_cfg, whose null class is the caller's, against ours."""
    config, dtype = CASES[3] | dict(side=4), torch.float32
    twin, other, _ = make_pair(original, config, dtype)
    x0, _, _, _, labels = inputs(config, dtype)
    sample = transport.Sampler(transport.create_transport()).sample_ode(
        sampling_method="euler", num_steps=7, timestep_shift=0.3)
    if weight > 1:
        null = torch.full_like(labels, SHAPE["classes"])
        states = sample(torch.cat([x0, x0]), other.forward_with_cfg, y=torch.cat([labels, null]), cfg_scale=weight,
                        cfg_interval=True, cfg_interval_start=start)[:, :len(x0)]
    else:
        states = sample(x0, other.forward, y=labels)
    times, x, worst = time_grid(7, 0.3, dtype), x0, 0.0
    for i, state in enumerate(states):
        if i:
            v = guided_velocity(twin, x, times[i - 1], labels, weight, start)
            x = x + (times[i] - times[i - 1]) * v
        worst = max(worst, difference(x, state))
    return dict(states=worst)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", help="folder of hustvl/LightningDiT")
    original, transport = import_original(parser.parse_args().checkout)
    failed = 0
    runs = [(dict(dtype=str(dtype).removeprefix("torch."), **config), BOUND[dtype],
             lambda c=config, d=dtype: compare_model(original, transport, c, d))
            for dtype in BOUND for config in CASES]
    runs += [(dict(sampler="euler", cfg=weight, cfg_start=start), BOUND[torch.float32],
              lambda w=weight, s=start: compare_sampler(original, transport, w, s))
             for weight, start in ((1.0, 0.0), (3.0, 0.0), (3.0, 0.3))]
    for what, bound, compare in runs:
        errors = compare()
        bad = any(error > bound for error in errors.values() if not isinstance(error, str))
        failed += bad
        print(json.dumps(what | {k: e if isinstance(e, str) else float(f"{e:.2g}") for k, e in errors.items()}
                         | dict(bound=bound, ok=not bad)), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
