"""Compares the distribution metrics of common/*.h with those that others wrote, at 2048 dimensions.

    make CPU=1 build/cpu/check_distribution
    python dev/reference/check_distribution.py build/cpu/check_distribution    a line a metric; fails above the bounds
    python dev/reference/check_distribution.py build/cpu/check_distribution --dim 300    the same in some seconds

FID        pytorch-fid's calculate_frechet_distance (scipy's sqrtm); and where a set has fewer images than dimensions
           tr (S1 S2)^(1/2) as the sum of the singular values of Xc Yc^T, which is exact
KID        torch-fidelity's kid_features_to_metric on one subset of all rows; and on its own 100 subsets, whose mean
           may differ by half a deviation
IS         torch-fidelity's isc_features_to_metric, unshuffled
P, R       torch-fidelity's prc_features_to_metric in double
P, R half  numpy's float16, with the roundings of ADM's evaluator

Features are random: non-negative, of decaying spectrum, like those of Inception. Needs scipy, pytorch-fid,
torch-fidelity and safetensors.

Seen at 2048 dimensions, relative: FID of 2560 and 3072 images 2e-14; of 1024 and 1536 images 1.1e-8 (pytorch-fid is
1.1e-7 off there); KID 3e-13, the mean over other subsets 1.2e-3 and 1.0e-2; IS 2e-15, its deviation 2e-14; precision
and recall the same counts, in half precision too.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.numpy import save_file
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def make_features(n, mix, shift, seed):
    """(n, dim) float32; `shift` moves mean and spread."""
    normal = np.random.default_rng(seed).standard_normal((n, mix.shape[0]))
    return np.abs((1 + shift) * normal @ mix + shift).astype(np.float32)


def exact_fid(x, y):
    """The trace from the data, whatever the ranks: sqrt(S1 S2) has the singular values of Xc Yc^T."""
    xc, yc = ((a - a.mean(0)) / np.sqrt(len(a) - 1) for a in (x, y))
    trace = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() + (yc**2).sum() - 2 * trace


def half_precision_recall(real, generated, k=3):
    """ADM's arithmetic: everything in float16, sums of squares and products accumulated in float32."""
    real, generated = real.astype(np.float16), generated.astype(np.float16)

    def distances(u, v):
        u32, v32 = u.astype(np.float32), v.astype(np.float32)
        squares_u, squares_v = ((a**2).sum(1).astype(np.float16) for a in (u32, v32))
        d = (squares_u[:, None] - np.float16(2) * (u32 @ v32.T).astype(np.float16)) + squares_v[None]
        return np.maximum(d, np.float16(0))

    def inside(points, centres):
        radii = np.partition(distances(centres, centres), k, axis=1)[:, k]
        return (distances(points, centres) <= radii).any(1).mean()

    return inside(generated, real), inside(real, generated)


def reference(real, generated, logits):
    """name -> (value, bound on the relative difference)"""
    x, y = real.astype(np.float64), generated.astype(np.float64)
    out = {}
    statistics = [v for a in (x, y) for v in (a.mean(0), np.cov(a, rowvar=False))]
    if min(len(x), len(y)) > x.shape[1]:
        out["fid"] = calculate_frechet_distance(*statistics), 1e-8
    else:
        out["fid"] = exact_fid(x, y), 1e-6
        print(f"  (pytorch-fid: {calculate_frechet_distance(*statistics):.9f}, exact: {out['fid'][0]:.9f})")
    least = min(len(x), len(y))
    first = torch.from_numpy(x[:least]), torch.from_numpy(y[:least])
    kid = kid_features_to_metric(*first, kid_subsets=1, kid_subset_size=least, verbose=False)
    out["kid_first_rows"] = kid["kernel_inception_distance_mean"], 1e-9
    size = min(1000, least)
    every = torch.from_numpy(x), torch.from_numpy(y)
    kid = kid_features_to_metric(*every, kid_subsets=100, kid_subset_size=size, verbose=False)
    mean = kid["kernel_inception_distance_mean"]
    out["kid"] = mean, 0.5 * kid["kernel_inception_distance_std"] / abs(mean)
    score = isc_features_to_metric(torch.from_numpy(logits), 10, shuffle=False)
    out["is"] = score["inception_score_mean"], 1e-12
    out["is_deviation"] = score["inception_score_std"], 1e-9
    out["is_whole"] = isc_features_to_metric(torch.from_numpy(logits), 1, shuffle=False)["inception_score_mean"], 1e-12
    shares = prc_features_to_metric(*every[::-1], verbose=False)
    out["precision"], out["recall"] = (shares["precision"], 1e-6), (shares["recall"], 1e-6)  # theirs: mean in float32
    halves = half_precision_recall(real, generated)
    out["precision_half"], out["recall_half"] = ((v, 5e-3) for v in halves)  # sums of another order, then rounded
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--dim", type=int, default=2048)
    arguments = parser.parse_args()
    dim, failed = arguments.dim, 0
    spectrum = np.arange(1, dim + 1)[:, None] ** -0.5
    mix = spectrum * np.random.default_rng(1).standard_normal((dim, dim)) / np.sqrt(8)
    for n, m in ((dim * 5 // 4, dim * 3 // 2), (dim // 2, dim * 3 // 4)):
        real, generated = make_features(n, mix, 0, 2), make_features(m, mix, 0.04, 3)
        logits = 3 * np.random.default_rng(4).standard_normal((m // 10 * 10, 1008)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "features.safetensors")
            save_file({"real": real, "generated": generated, "logits": logits}, path)
            got = json.loads(subprocess.run([arguments.program, path], check=True, stdout=subprocess.PIPE).stdout)
        print(f"{n} and {m} images, {dim} dimensions", {k: v for k, v in got.items() if k.startswith("seconds")})
        for name, (want, bound) in reference(real, generated, logits).items():
            error = abs(got[name] - want) / abs(want)
            failed += not error <= bound
            print(f"  {name:16} {got[name]:.12g} here, {want:.12g} there: {error:.1e}" + " FAIL" * (not error <= bound))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
