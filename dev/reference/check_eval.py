"""`./eval` beside pytorch-fid, on the same files of images.

    pip install -r dev/reference/requirements.txt
    make CPU=1 build/cpu/eval && python dev/reference/check_eval.py build/cpu/eval

Two sets of crops of scikit-image's photographs, the second one blurred and noisy, are written as PNGs. Inception gets
random weights (the published file cannot be had everywhere), which pytorch-fid's own module writes as it would the real
ones. Then the Frechet distance is computed three ways: pytorch-fid's functions on both folders, eval on both folders,
and eval against the statistics file that pytorch-fid's numpy code writes (numpy.savez_compressed).

Seen: 1.4e-5 with two folders, 2.9e-6 with the statistics file (24 images a side, so covariances are singular, where
scipy's square root is not exact). About two minutes on two cores.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid.inception import InceptionV3
import pytorch_fid.inception as inception
import skimage.data

IMAGES, SIZE = 24, 256


def inception_state():
    """Random weights of pytorch-fid's network, of a size that keeps activations alive."""
    net = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    net.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
    net.Mixed_6b = inception.FIDInceptionC(768, channels_7x7=128)
    net.Mixed_6c = inception.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6d = inception.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6e = inception.FIDInceptionC(768, channels_7x7=192)
    net.Mixed_7b = inception.FIDInceptionE_1(1280)
    net.Mixed_7c = inception.FIDInceptionE_2(2048)
    for name, p in net.named_parameters():
        if p.ndim == 4:
            torch.nn.init.kaiming_normal_(p)
        elif p.ndim == 1 and name.endswith("bn.weight"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif p.ndim == 1:
            torch.nn.init.uniform_(p, -0.1, 0.1)
    return net.state_dict()


def write_photographs(folder, changed):
    rng = np.random.default_rng(1 if changed else 0)
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    os.makedirs(folder)
    for i in range(IMAGES):
        photo = photos[i % len(photos)]
        y = rng.integers(0, photo.shape[0] - SIZE + 1)
        x = rng.integers(0, photo.shape[1] - SIZE + 1)
        crop = photo[y:y + SIZE, x:x + SIZE].astype(np.float64)
        if changed:
            crop = (crop + np.roll(crop, 2, 1)) / 2 + rng.normal(0, 12, crop.shape)
        Image.fromarray(np.clip(crop + 0.5, 0, 255).astype(np.uint8)).save(f"{folder}/{i:03d}.png")


def run_eval(program, folder, *flags):
    path = os.path.join(folder, "scores.json")
    if os.path.exists(path):
        os.remove(path)
    subprocess.run([program, "-gen", "-json", path, "-out", "", "-features", os.path.join(folder, "inception.pth"),
                    "-samples", os.path.join(folder, "b"), "-n", "1000", "-batch", "8", *flags],
                   check=True, stdout=subprocess.DEVNULL)
    with open(path) as f:
        return json.loads(f.readline())


def main():
    program = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        a, b = os.path.join(folder, "a"), os.path.join(folder, "b")
        write_photographs(a, False)
        write_photographs(b, True)
        torch.manual_seed(0)
        state = inception_state()
        torch.save(state, os.path.join(folder, "inception.pth"))
        inception.load_state_dict_from_url = lambda *args, **kwargs: state  # in place of the download
        model = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
        m1, s1 = fid_score.compute_statistics_of_path(a, model, 8, 2048, "cpu", 0)
        m2, s2 = fid_score.compute_statistics_of_path(b, model, 8, 2048, "cpu", 0)
        reference = os.path.join(folder, "statistics.npz")
        np.savez_compressed(reference, mu=m1, sigma=s1)
        theirs = fid_score.calculate_frechet_distance(m1, s1, m2, s2)
        images = run_eval(program, folder, "-reference", a, "-input", "pt")
        statistics = run_eval(program, folder, "-reference", reference)
        print(f"pytorch-fid {theirs:.8f}")
        for name, ours in (("eval, two folders", images), ("eval, pytorch-fid's statistics", statistics)):
            print(f"{name}: {ours['gFID']:.8f}, relative difference {abs(ours['gFID'] - theirs) / theirs:.1e}")
            assert abs(ours["gFID"] - theirs) < 1e-3 * theirs


if __name__ == "__main__":
    main()
