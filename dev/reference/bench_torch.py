"""Times PyTorch's CPU build on the work that dev/bench times in C. One JSON object a line: name, median seconds, runs.

    python dev/reference/bench_torch.py                       encode, decode and a miniature step of stage 2
    python dev/reference/bench_torch.py step --config '{"stage": 1, "batch": 32}'

encode  DINOv2-L tokens of one 256x256 image, with resize and normalisation, no gradients
decode  the LDM decoder (ch 128, mult 1 1 2 2 4, z 32) on one 16x16 latent, no gradients
step    one training step of the miniature tokenizer: losses, adaptive weights by autograd as VA-VAE's code takes
        them, both Adams and two moving averages; STEP below lists what --config can change. Its defaults are those of
        `train_tokenizer -preset mini`; dev/bench/compare.sh passes on what bench_models says it ran.

Weights are PyTorch's initial ones: the time doesn't depend on them. float32 throughout. cpu_seconds is the time of all
threads together.
"""
import argparse
import copy
import json
import statistics
import time
import unittest.mock

import taming.modules.diffusionmodules.model as taming_model
import timm
import torch
import torch.nn.functional as F
from torch import nn

from make_fixtures import (Adapter, NLayerDiscriminator, adaptive_weight, discriminator_loss, encode, encoder_input,
                           make_decoder, make_lpips, make_vit)

STEP = dict(stage=2, batch=32, chunk=8, image=32, patch=7, embed=96, depth=4, heads=3, adapter_hidden=32, z_channels=16,
            ch=16, ch_mult=[1, 2, 4, 4], num_res_blocks=1, groups=8, lpips_channels=[16, 32, 64], ndf=16, lr=1e-3)


def make_encode():
    vit = timm.create_model("vit_large_patch14_dinov2.lvd142m", pretrained=False, num_classes=0, dynamic_img_size=True)
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    return torch.inference_mode()(lambda: encode(vit, encoder_input(image)[1]))


def make_decode():
    decoder = make_decoder(dict(ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=32))
    z = torch.randn(1, 32, 16, 16)
    return torch.inference_mode()(lambda: decoder(z))


def make_grouped_decoder(config):
    """taming's decoder with another number of groups in its GroupNorms than 32."""
    normalize = lambda channels: nn.GroupNorm(config["groups"], channels, eps=1e-6)
    with unittest.mock.patch.object(taming_model, "Normalize", normalize):
        return make_decoder(config)


def make_short_lpips(channels):
    """LPIPS on the first slices of a narrow VGG16: `channels` are those of the slices that there are."""
    model = make_lpips(channels[0])
    model.L = len(channels)
    for index in range(model.L + 1, 6):
        setattr(model.net, f"slice{index}", nn.Identity())
    found = [[layer for layer in getattr(model.net, f"slice{k + 1}") if isinstance(layer, nn.Conv2d)][-1].out_channels
             for k in range(model.L)]
    assert found == channels, f"the package's VGG16 has slices of {found} channels, not {channels}"
    return model


class Miniature:
    """The miniature tokenizer with everything that a training step needs."""

    def __init__(self, config):
        self.config = config
        side = config["image"] // 16 * 14
        self.vit = make_vit(dict(patch=config["patch"], pos_grid=side // config["patch"], embed=config["embed"],
                                 depth=config["depth"], heads=config["heads"], layerscale=True, gelu="exact",
                                 class_token=True, registers=0, pos_prefix=True))
        self.grid = side // config["patch"]
        self.adapter = Adapter(config["embed"], config["adapter_hidden"], config["z_channels"])
        self.decoder = make_grouped_decoder(config)
        self.lpips = make_short_lpips(config["lpips_channels"])
        self.discriminator = NLayerDiscriminator(ndf=config["ndf"], n_layers=3)
        self.previous = copy.deepcopy(nn.Sequential(self.vit, self.adapter)).requires_grad_(False)
        self.vit.requires_grad_(config["stage"] == 2)
        self.adapter.requires_grad_(config["stage"] != 3)
        parts = (self.vit, self.adapter, self.decoder)
        self.trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.averages = [[p.detach().clone() for p in self.trained] for _ in range(2)]
        self.optimizer = torch.optim.Adam(self.trained, lr=config["lr"], betas=(0.5, 0.9))
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=config["lr"], betas=(0.5, 0.9))
        self.images = torch.rand(config["batch"], 3, config["image"], config["image"]) * 2 - 1

    def generator_loss(self, image):
        """The loss of one chunk with its adaptive weights, and the reconstruction."""
        pixels = encoder_input(image)[1]
        z = self.adapter(encode(self.vit, pixels))
        reconstruction = self.decoder(z.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        nll = ((image - reconstruction).abs() + self.lpips(image, reconstruction)).sum() / len(image)
        loss_g = -self.discriminator(reconstruction.clone()).mean()
        loss = nll + adaptive_weight(nll, loss_g, self.decoder.conv_out.weight, 0.5, 1e4)[0] * loss_g
        if self.config["stage"] == 2:
            with torch.no_grad():
                z0 = self.previous[1](encode(self.previous[0], pixels))
            loss_sem = F.mse_loss(z, z0)
            loss = loss + adaptive_weight(nll, loss_sem, self.adapter.fc2.weight, 1.0, 1e8)[0] * loss_sem
        return loss, reconstruction.detach()

    def step(self):
        chunks = self.images.split(self.config["chunk"])
        reconstructions = []
        self.optimizer.zero_grad()
        for image in chunks:
            loss, reconstruction = self.generator_loss(image)
            (loss / len(chunks)).backward(inputs=self.trained)
            reconstructions.append(reconstruction)
        self.optimizer.step()
        self.optimizer_d.zero_grad()
        for image, reconstruction in zip(chunks, reconstructions):
            (discriminator_loss(self.discriminator(image), self.discriminator(reconstruction)) / len(chunks)).backward()
        self.optimizer_d.step()
        with torch.no_grad():
            for average in self.averages:
                torch._foreach_lerp_(average, self.trained, 1e-3)


def measure(work, runs):
    """Median wall, shortest wall and median CPU seconds of `runs` calls after one for warming up."""
    work()
    wall, cpu = [], []
    for _ in range(runs):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return statistics.median(wall), min(wall), statistics.median(cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="encode, decode, step; default: all")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON object that changes STEP")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    makers = {"encode": make_encode, "decode": make_decode, "step": lambda: Miniature(STEP | arguments.config).step}
    unknown = (set(arguments.what) - set(makers)) | (set(arguments.config) - set(STEP))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join([*makers, *STEP])}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    for name in arguments.what or makers:
        seconds, best, cpu_seconds = measure(makers[name](), arguments.runs)
        line = {"name": name, "seconds": round(seconds, 6), "best_seconds": round(best, 6),
                "cpu_seconds": round(cpu_seconds, 6), "runs": arguments.runs, "threads": arguments.threads,
                "torch": torch.__version__}
        if name == "step":
            line["config"] = STEP | arguments.config
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
