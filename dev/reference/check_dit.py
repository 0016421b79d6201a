"""Compares lightningdit_twin.py's `classic` variant with the original DiT and SiT: checkouts of both are the arguments.

    python dev/reference/check_dit.py DiT SiT                  one JSON object a line; fails above the bounds

Weights are random and never at their initial value. Compared are outputs and the gradient of every parameter, in
float64 and float32, DiT's at times 0 to 999 with all eight output channels, SiT's at times 0 to 1 with the four that it
keeps. The original's time features are float32 always, and an angle of 999 then is off by up to 3e-5: they are compared
by themselves, and ours take their place in the rest. Last, XL/2's parameters and names. Needs timm.
"""
import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch

from check_lightningdit import difference, largest_gradient_difference
from fixture_file import fill
from lightningdit_twin import LightningDiT, time_features
from make_dit_fixtures import randomise

FEATURES = 6e-5
BOUND = {torch.float64: 1e-6, torch.float32: 2e-5}
CLASSIC = dict(swiglu=False, classic=True, sigma=True)


def import_models(folder):
    spec = importlib.util.spec_from_file_location(f"models_of_{Path(folder).name}", Path(folder) / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(original, kept, times, dtype):
    """kept: channels of the twin's output that the original returns."""
    twin = LightningDiT(side=6, patch=2, channels=4, dim=96, depth=3, heads=4, classes=7, **CLASSIC).to(dtype)
    randomise(twin)
    other = original(input_size=6, patch_size=2, hidden_size=96, depth=3, num_heads=4, num_classes=7).to(dtype).eval()
    other.load_state_dict(twin.state_dict())  # strict: the names are the same
    embed = other.t_embedder.timestep_embedding
    other.t_embedder.timestep_embedding = lambda t, dim: time_features(t)
    x, dv = (fill(f"dit.{name}", (3, c, 6, 6), amplitude=2.0).to(dtype) for name, c in (("x", 4), ("dv", kept)))
    t, labels = torch.tensor(times, dtype=dtype), torch.tensor([2, 7, 2])
    v, want = twin(x, t, labels)[:, :kept], other(x, t, labels)
    gradient, name = largest_gradient_difference(twin, other, (v * dv).sum(), (want * dv).sum())
    features = difference(embed(t, 256).double(), time_features(t.double()))
    return dict(features=features, output=difference(v.detach(), want.detach()), gradient=gradient, of=name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dit", help="folder of facebookresearch/DiT")
    parser.add_argument("sit", help="folder of willisma/SiT")
    folders = parser.parse_args()
    dit, sit, failed = import_models(folders.dit).DiT, import_models(folders.sit).SiT, 0
    cases = ("DiT", dit, 8, [0.0, 431.0, 999.0]), ("SiT", sit, 4, [0.0, 0.40625, 0.96875])
    for dtype in BOUND:
        for name, model, kept, times in cases:
            errors = compare(model, kept, times, dtype)
            bad = max(errors["output"], errors["gradient"]) > BOUND[dtype] or errors["features"] > FEATURES
            failed += bad
            print(json.dumps(dict(model=name, dtype=str(dtype), **errors, bound=BOUND[dtype], ok=not bad)), flush=True)
    full = dit(depth=28, hidden_size=1152, patch_size=2, num_heads=16)
    twin = LightningDiT(side=32, patch=2, channels=4, dim=1152, depth=28, heads=16, **CLASSIC)
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (full, twin)]
    same = shapes[0] == shapes[1]
    print(json.dumps(dict(model="DiT-XL/2", parameters=sum(p.numel() for p in full.parameters()), same_names=same)))
    sys.exit(1 if failed or not same else 0)


if __name__ == "__main__":
    main()
