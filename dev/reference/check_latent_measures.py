"""Compares the latent-space measures with the programs that define them.

    make build/cpu/check_latent_measures
    python dev/reference/check_latent_measures.py                  random clusters, two minutes; fails above the bounds
    python dev/reference/check_latent_measures.py LightningDiT     and the two demo caches of a checkout of
                                                                   hustvl/LightningDiT (10,000 x 32), half a minute each

CKNNA is the formula of minyoungg/platonic-rep (metrics.py: cknna, hsic_unbiased) on whole matrices. Density is
LightningDiT's tools/latent_vis.py: scikit-learn's TSNE, SciPy's gaussian_kde, and its three numbers. On one map the
density must agree to rounding. Two maps of the same points are two local minima, so maps are compared as closely as
scikit-learn's agree with each other from several starts.

The demo caches, by build/cpu/check_latent_measures (exact repulsion, PCA start), in brackets scikit-learn 1.2's tree:

                      CV                Gini              entropy              KL
    f16d32            .2705 (.2405)     .1514 (.1304)     .99566 (.99643)      3.2222 (3.2056)
    f16d32_vfdinov2   .1707 (.1737)     .0883 (.0903)     .99825 (.99819)      2.1891 (2.1920)

Random starts of the exact descent give CV .252 to .270 for the first and .172 to .173 for the second. A map takes 27 s
of one core (Xeon with AVX-512), and threads share that.
Needs scikit-learn, scipy, numpy; torch for the caches.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from scipy.stats import gaussian_kde
from sklearn.manifold import TSNE

PROGRAM = os.path.join(os.path.dirname(__file__), "..", "..", "build", "cpu", "check_latent_measures")
DEMOS = {"f16d32": (.252, .275, 3.222), "f16d32_vfdinov2": (.165, .178, 2.190)}  # range of CV, KL


def run(*arguments):
    out = subprocess.run([PROGRAM, *map(str, arguments)], check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(out.splitlines()[-1])


def hsic(K, L):
    """Unbiased HSIC of Song et al. 2012, equation 5, as platonic-rep writes it."""
    m = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    value = (K * L.T).sum() + K.sum() * L.sum() / ((m - 1) * (m - 2)) - 2 * (K @ L).sum() / (m - 2)
    return value / (m * (m - 3))


def cknna(a, b, k, clip):
    """CKNNA of two sets of features; `clip` clamps them as platonic-rep's remove_outliers does."""
    unit = []
    for x in (a.astype(np.float64), b.astype(np.float64)):
        if clip:
            q = np.sort(np.abs(x).ravel())[int(clip * x.size)]
            x = x.clip(-q, q)
        unit.append(x / np.linalg.norm(x, axis=1, keepdims=True))
    K, L = (x @ x.T for x in unit)

    def nearest(K):
        order = np.argsort(-(K - 1e30 * np.eye(len(K))), axis=1, kind="stable")[:, :k]
        mask = np.zeros_like(K)
        np.put_along_axis(mask, order, 1, axis=1)
        return mask

    mk, ml = nearest(K), nearest(L)
    m = mk * ml
    return hsic(m * K, m * L) / (np.sqrt(hsic(mk * K, mk * K) * hsic(ml * L, ml * L)) + 1e-6)


def density(points):
    """CV, Gini coefficient and normalised entropy, as latent_vis.py computes them."""
    p = gaussian_kde(points.T)(points.T)
    n, q, rank = len(p), p / p.sum(), np.arange(1, len(p) + 1)
    return (p.std() / p.mean(), ((2 * rank - n - 1) * np.sort(p)).sum() / (n * p.sum()),
            -(q * np.log2(q + 1e-10)).sum() / np.log2(n))


def clusters(n, d, seed):
    random = np.random.default_rng(seed)
    centres = 2.5 * random.standard_normal((12, d))
    return (centres[random.integers(12, size=n)] + random.standard_normal((n, d))).astype(np.float32)


def report(ok, **values):
    print(json.dumps(values | {"ok": bool(ok)}), flush=True)
    return bool(ok)


def check_cknna(folder):
    passed = True
    for n, da, db, k, clip in ((200, 32, 48, 10, 0), (501, 7, 33, 10, 0.95), (777, 32, 1024, 25, 0)):
        a = clusters(n, da, n)
        b = np.tanh(a @ np.random.default_rng(3).standard_normal((da, db)) / 4).astype(np.float32)
        b += 0.3 * np.random.default_rng(4).standard_normal(b.shape).astype(np.float32)
        for name, x in (("a", a), ("b", b)):
            x.tofile(os.path.join(folder, name))
        ours = run("cknna", n, da, os.path.join(folder, "a"), db, os.path.join(folder, "b"), k, clip)["cknna"]
        error = abs(ours / cknna(a, b, k, clip) - 1)
        passed &= report(error < 1e-6, measure="cknna", n=n, k=k, clip=clip, ours=ours, error=error)
    return passed


def run_density(folder, data):
    data.tofile(os.path.join(folder, "data"))
    place = os.path.join(folder, "map")
    ours = run("density", *data.shape, os.path.join(folder, "data"), place)
    want = density(np.fromfile(place).reshape(-1, 2))
    error = max(abs(ours[name] - value) for name, value in zip(("cv", "gini", "entropy"), want))
    return ours, error


def check_density(folder, n=1000, d=16):
    data = clusters(n, d, 1)
    ours, error = run_density(folder, data)
    passed = report(error < 1e-6, measure="density of our map", error=error)
    starts = [("pca", 0), ("random", 1), ("random", 2)]
    maps = []
    for start, seed in starts:
        tsne = TSNE(perplexity=30, init=start, random_state=seed, method="exact", learning_rate="auto", n_jobs=1)
        values = density(tsne.fit_transform(data).astype(np.float64))
        maps.append((*values, tsne.kl_divergence_))
        print(json.dumps({"scikit-learn": start, "values": [round(float(v), 5) for v in maps[-1]]}), flush=True)
    names, bounds = ("cv", "gini", "entropy", "kl"), (0.01, 0.006, 0.0005, 0.006)
    for name, bound, theirs in zip(names, bounds, np.array(maps).T):
        low, high = theirs.min() - bound, theirs.max() + bound
        passed &= report(low <= ours[name] <= high, measure=name, ours=ours[name], low=low, high=high)
    return passed


def check_demos(folder, checkout):
    import torch
    passed = True
    for name, (low, high, kl) in DEMOS.items():
        path = os.path.join(checkout, "tools", "latent_demos", f"latents_cache_{name}.pt")
        data = torch.load(path, map_location="cpu", weights_only=True).numpy().astype(np.float32)
        ours, error = run_density(folder, data)
        ok = error < 1e-6 and low <= ours["cv"] <= high and abs(ours["kl"] / kl - 1) < 0.005
        passed &= report(ok, demo=name, error=error, **ours)
    return passed


def main():
    with tempfile.TemporaryDirectory() as folder:
        passed = check_cknna(folder)
        passed &= check_density(folder)
        if len(sys.argv) > 1:
            passed &= check_demos(folder, sys.argv[1])
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
