"""Writes tests/fixtures/mmdit_steps.safetensors: ten training steps of the text-to-image transformer.

    python dev/reference/make_mmdit_steps.py                  needs torch only

By mmdit_twin.py, in float64, which first gives the answer of minFM's own class (tests/fixtures/mmdit.safetensors; seen:
2.6e-8, which is that file's rounding).
"""
import importlib.metadata
import json

import safetensors.numpy
import torch

from fixture_file import DTYPE, REPOSITORY, Fixture, fill, run
from make_dit_fixtures import normal
from mmdit_twin import MMDiT

VERSIONS = {"torch": importlib.metadata.version("torch").split("+")[0]}
STEPS, LENGTHS = 10, (4, 1, 3)


def mask_of(lengths, rows):
    return torch.tensor([[row >= rows - length for row in range(rows)] for length in lengths])


def check_minfm():
    path = REPOSITORY / "tests" / "fixtures" / "mmdit.safetensors"
    file = {name: torch.from_numpy(value).to(DTYPE) for name, value in safetensors.numpy.load_file(path).items()}
    with safetensors.safe_open(path, "np") as header:
        config = json.loads(header.metadata()["config"])
    keys = ("dim", "heads", "doubles", "singles", "axes", "text", "vector", "channels", "guidance")
    model = MMDiT(**{key: config[key] for key in keys}).to(DTYPE)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            base, amplitude, count = file[f"generate.{name}"].tolist()
            assert count == tensor.numel()
            tensor.copy_(fill(name, tensor.shape, base, amplitude))
        inputs = {name: file[f"input.{name}"] for name in ("xt", "t", "text", "pooled", "guidance")}
        v = model(mask=mask_of(config["lengths"], inputs["text"].shape[1]), **inputs)
    difference = float((v - file["output.v"]).norm() / file["output.v"].norm())
    print(f"the twin and minFM's class differ by {difference:.2g}")
    assert difference < 1e-6


def initialise(fixture, model):
    """Random matrices, biases of 0. Modulations do not begin at 0, where most gradients vanish and Adam's
    first steps would be rounding alone: which are 0 is another test's subject (tests/test_mmdit.c)."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            rule = float(name.endswith("scale")), 0.0 if tensor.dim() == 1 else 2.0**-2
            tensor.copy_(fill(name, tensor.shape, *rule))
            fixture.add(f"generate.{name}", [*rule, tensor.numel()])


def train(model, draw, lr, warmup, betas, eps, decay, clip, ema):
    named = dict(model.named_parameters())
    groups = [dict(params=[p for p in named.values() if p.dim() >= 2], weight_decay=decay),
              dict(params=[p for p in named.values() if p.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    average = {name: p.detach().clone() for name, p in named.items()}
    history = dict(mse=[], gradient_norm=[])
    for step, (x1, x0, t, text, pooled) in enumerate(zip(*draw.values())):
        noise_time = (1 - t)[:, None, None, None]  # FLUX's: 0 is data
        xt = (1 - noise_time) * x1 + noise_time * x0
        v = model(xt, 1 - t, text, mask_of(LENGTHS, text.shape[1]), pooled)
        mse = (v - (x0 - x1)).square().mean()
        optimizer.zero_grad()
        mse.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), clip)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / warmup)
        optimizer.step()
        for name, p in named.items():
            average[name] = ema * average[name] + (1 - ema) * p.detach()
        history["mse"].append(float(mse.detach()))
        history["gradient_norm"].append(float(norm))
    return history, named, average


def mmdit_steps():
    """Ten training steps of a FLUX-style transformer from random weights: the mean squared error of noise - data
    at time 1 - t, AdamW with decay of matrices alone, a warm-up of 4 steps, clipping, moving average. Captions of 4, 1
    and 3 rows, right-aligned in 4. Inputs, losses and the norm of all gradients before clipping have one row a step."""
    check_minfm()
    config = dict(dim=16, heads=2, doubles=1, singles=1, axes=[2, 2, 4], text=5, vector=4, channels=3)
    optimizer = dict(lr=1e-3, warmup=4, betas=(0.9, 0.95), eps=1e-8, decay=0.1, clip=4.0, ema=0.9)
    h, w, B, L = 3, 2, len(LENGTHS), max(LENGTHS)
    fixture = Fixture(model="mmdit", lengths=LENGTHS, steps=STEPS, h=h, w=w, **config, **optimizer)
    model = MMDiT(**config).to(DTYPE)
    initialise(fixture, model)
    draw = dict(x1=normal("mmdit_steps.x1", (STEPS, B, h, w, config["channels"])),
                x0=normal("mmdit_steps.x0", (STEPS, B, h, w, config["channels"])),
                t=torch.sigmoid(normal("mmdit_steps.t", (STEPS, B))).float().to(DTYPE),
                text=normal("mmdit_steps.text", (STEPS, B, L, config["text"])),
                pooled=normal("mmdit_steps.pooled", (STEPS, B, config["vector"])))
    for name, value in draw.items():
        fixture.add(f"input.{name}", value)
    history, named, average = train(model, draw, **optimizer)
    for name, values in history.items():
        fixture.add(f"output.{name}", values)
    for name in named:
        fixture.add(f"after.{name}", named[name])
        fixture.add(f"ema.{name}", average[name])
    return fixture


if __name__ == "__main__":
    run(__doc__, (mmdit_steps,), VERSIONS)
