"""Times PyTorch on LightningDiT: a training step, and sampling with guidance; and on a text-to-image transformer's
training step. One JSON object a measurement.

    python dev/reference/bench_dit.py train sample --size XL/1 --batch 64 --compile     on a GPU
    python dev/reference/bench_dit.py --size mini --batch 8 --steps 10                  anywhere
    python dev/reference/bench_dit.py --from models.json  what `bench_models -only dit,draw,t2i -json models.json` timed

train   `--runs` steps of random latents: flow matching (mean squared error + cosine), label drop, AdamW (fused on a
        GPU), moving average of the weights, one after the other without waiting for the loss. --recompute keeps no
        activations inside a block.
t2i_256, t2i_512   with --from: steps of mmdit_twin.py on latents and text rows of the sizes that bench_models names
sample  `--batch` images by Euler over `--steps` grid points, hence --steps - 1 evaluations, with guidance from t =
        --cfg-start on; an image with and without its class then go through the network as one batch.

On a GPU: bf16 autocast, scaled_dot_product_attention's fused kernels, TF32 for what stays in float32; --fp32 does
without autocast. On a CPU: float32. --compile: torch.compile of the blocks, of which equal ones are compiled once,
after the eager figures (--no-eager leaves those out). tflops counts 6 FLOP per multiply-accumulate of the forward pass
for a training step, whether it recomputes or not, and 2 for an evaluation.
A time is the median of --repeats, after --warmup calls; cpu_seconds is that of all threads of the process.
Modulation and output get random weights, so that no branch is multiplied by zero. Needs torch, nothing else.
"""
import argparse
import contextlib
import functools
import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmdit_twin
from lightningdit_twin import (SIZES, Block, FinalLayer, LightningDiT, TimeEmbedding, flow_loss, flow_pair,
                               guided_velocity, make_size, time_grid)

NAMES = dict(train="dit", sample="draw", t2i_256="t2i_256", t2i_512="t2i_512")  # as bench_models calls them
MINI = dict(side=4, patch=1, channels=16, dim=128, depth=6, heads=4, classes=10)


def make_model(arguments):
    options = dict(qk_norm=arguments.qk_norm)
    with torch.device(arguments.device):
        if arguments.size == "mini":
            model = LightningDiT(**MINI | arguments.config, **options)
        else:
            model = make_size(arguments.size, **dict(side=16, channels=32) | arguments.config, **options)
        model.initialise()
        for layer in (*model.blocks, model.final_layer):
            nn.init.normal_(layer.adaLN_modulation[1].weight, std=0.02)
        nn.init.normal_(model.final_layer.linear.weight, std=0.02)
    return model


def half(arguments):
    """bf16 on a GPU, unless --fp32."""
    return torch.autocast("cuda", torch.bfloat16) if arguments.bf16 else contextlib.nullcontext()


def recompute_blocks(model):
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class Train:
    """Everything of a training step; all of it stays on the device."""

    def __init__(self, arguments):
        self.arguments, self.model = arguments, make_model(arguments)
        if arguments.recompute:
            recompute_blocks(self.model)
        self.prepare(6 * self.model.macs())
        side = self.model.grid * self.model.patch
        with torch.device(arguments.device):
            self.x1 = torch.randn(arguments.batch, self.model.channels, side, side)
            self.labels = torch.randint(self.model.classes, (arguments.batch,))

    def prepare(self, work):
        """Average, optimiser; `work`: FLOP an image."""
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.trained, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0,
                                           fused=self.arguments.device == "cuda")
        self.work = work
        self.forwards = 1

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.trained, 1e-4)

    def run(self):
        noise = torch.randn_like(self.x1)
        t = torch.sigmoid(torch.randn(len(noise), device=noise.device))
        dropped = torch.rand(len(noise), device=noise.device) < 0.1
        labels = torch.where(dropped, self.model.classes, self.labels)
        x, u = flow_pair(self.x1, noise, t)
        with half(self.arguments):
            v = self.model(x, t, labels)
        mse, cosine = flow_loss(v.float(), u)
        self.step(mse + cosine)


class TrainCaptions(Train):
    """The same of a text-to-image transformer; no cosine term, all captions of one length."""

    def __init__(self, arguments):
        self.arguments, side, B = arguments, arguments.side, arguments.batch
        channels = 16 if arguments.size == "t2i-mini" else 32
        with torch.device(arguments.device):
            self.model = mmdit_twin.make_size(arguments.size, channels)
            for parameter in self.model.parameters():
                nn.init.normal_(parameter, std=0.02)
            self.x1 = torch.randn(B, side, side, channels)
            self.text = torch.randn(B, arguments.rows, self.model.txt_in.in_features)
            self.pooled = torch.randn(B, self.model.vector_in.in_layer.in_features)
        if arguments.recompute:
            for block in (*self.model.double_blocks, *self.model.single_blocks):
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        self.prepare(6 * self.model.macs(arguments.rows, side, side))

    def run(self):
        noise = torch.randn_like(self.x1)
        t = torch.sigmoid(torch.randn(len(noise), device=noise.device))
        part = t[:, None, None, None]
        with half(self.arguments):
            v = self.model((1 - part) * self.x1 + part * noise, t, self.text, None, self.pooled)
        self.step((v.float() - (noise - self.x1)).square().mean())


class Sample:
    def __init__(self, arguments):
        self.arguments, self.model = arguments, make_model(arguments).requires_grad_(False)
        if arguments.bf16:  # as autocast would, but once
            for module in self.model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.bfloat16()
        self.times = time_grid(arguments.steps, arguments.shift).tolist()
        guided = sum(t >= arguments.cfg_start for t in self.times[:-1]) if arguments.cfg > 1 else 0
        self.forwards = arguments.steps - 1 + guided
        self.work = 2 * self.model.macs() * self.forwards
        side = self.model.grid * self.model.patch
        with torch.device(arguments.device):
            self.noise = torch.randn(arguments.batch, self.model.channels, side, side)
            self.labels = torch.randint(self.model.classes, (arguments.batch,))

    def velocity(self, x, t):
        """guided_velocity with both passes as one batch."""
        if self.arguments.cfg <= 1 or t < self.arguments.cfg_start:
            return guided_velocity(self.model, x, t, self.labels)
        twice = torch.cat([x, x])
        labels = torch.cat([self.labels, torch.full_like(self.labels, self.model.classes)])
        v, none = self.model(twice, torch.full_like(twice[:, 0, 0, 0], t), labels).float().chunk(2)
        mixed = none + self.arguments.cfg * (v - none)
        return torch.cat([mixed[:, :3], v[:, 3:]], dim=1)

    @torch.no_grad()
    def run(self):
        x = self.noise
        with half(self.arguments):
            for t, after in zip(self.times, self.times[1:]):
                x = x + (after - t) * self.velocity(x, t).float()
        return x


# ---- Time ------------------------------------------------------------------------------------------------------------

def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure(work, runs, arguments):
    """Seconds of a call: those of `runs` calls in a row, --repeats times; median and shortest, and median CPU time."""
    for _ in range(arguments.warmup):
        work()
    seconds, cpu = [], []
    for _ in range(arguments.repeats):
        wait(arguments.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(runs):
            work()
        wait(arguments.device)
        seconds.append((time.perf_counter() - start) / runs)
        cpu.append((time.process_time() - cpu_start) / runs)
    return statistics.median(seconds), min(seconds), statistics.median(cpu)


def compile_parts(model):
    for part in model.modules():
        if isinstance(part, (Block, FinalLayer, TimeEmbedding, mmdit_twin.DoubleBlock, mmdit_twin.SingleBlock,
                             mmdit_twin.Final, mmdit_twin.Embedder)):
            part.compile(dynamic=False)


def time_work(kind, compiled, arguments):
    cuda = arguments.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work = dict(train=Train, sample=Sample).get(kind, TrainCaptions)(arguments)
    if compiled:
        compile_parts(work.model)
    seconds, best, cpu = measure(work.run, 1 if kind == "sample" else arguments.runs, arguments)
    rate = arguments.batch / seconds
    line = dict(kind="model", name=NAMES[kind], size=arguments.size, images=arguments.batch,
                mode="compiled" if compiled else "eager", precision="bf16" if arguments.bf16 else "fp32",
                images_per_second=float(f"{rate:.4g}"), tflops=float(f"{rate * work.work / 1e12:.4g}"),
                seconds=round(seconds, 6), best_seconds=round(best, 6), cpu_seconds=round(cpu, 6),
                forwards=work.forwards,
                gmacs=round(work.work / (2 if kind == "sample" else 6) / work.forwards / 1e9, 4),
                qk_norm=arguments.qk_norm,
                parameters=sum(p.numel() for p in work.model.parameters()))
    if kind == "sample":
        line |= dict(steps=arguments.steps, cfg=arguments.cfg, cfg_start=arguments.cfg_start, shift=arguments.shift)
    else:
        line |= dict(recompute=arguments.recompute)
    line |= dict(threads=torch.get_num_threads(), torch=torch.__version__,
                 device=torch.cuda.get_device_name() if cuda else "cpu",
                 peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else 0)
    print(json.dumps(line), flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="train, sample; default: both")
    parser.add_argument("--size", choices=("mini", *SIZES), default="mini")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON object: side, channels, classes, ...")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--steps", type=int, default=50, help="grid points of sampling")
    parser.add_argument("--cfg", type=float, default=4.0, help="weight of guidance; 1: without")
    parser.add_argument("--cfg-start", type=float, default=0.125)
    parser.add_argument("--shift", type=float, default=0.3, help="of the times; 0: even steps")
    parser.add_argument("--qk-norm", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="no bf16 on a GPU")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--no-eager", action="store_true", help="leave the eager mode out")
    parser.add_argument("--runs", type=int, default=5, help="training steps in a row; three times as many are made")
    parser.add_argument("--warmup", type=int, default=2, help="calls before those that count")
    parser.add_argument("--repeats", type=int, default=3, help="times of which the median counts")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: PyTorch's choice")
    parser.add_argument("--from", dest="source", default="", help="JSON lines of bench_models: the same sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    arguments = parser.parse_args()
    if set(arguments.what) - {"train", "sample"}:
        parser.error("what is timed: train, sample")
    if min(arguments.batch, arguments.runs, arguments.repeats) < 1 or arguments.steps < 2:
        parser.error("--batch, --runs and --repeats are at least 1, --steps at least 2")
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.bf16 = arguments.device == "cuda" and not arguments.fp32
    return arguments


def jobs(arguments):
    """What is to be timed: pairs of train or sample, and arguments."""
    if not arguments.source:
        return [(kind, arguments) for kind in arguments.what or ("train", "sample")]
    found = []
    with open(arguments.source) as file:
        for line in map(json.loads, file):
            for kind, name in NAMES.items():
                if line["kind"] == "model" and line["name"] == name and kind in (arguments.what or NAMES):
                    found.append((kind, argparse.Namespace(**vars(arguments) | line["config"])))
    return found


def main():
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    modes = ([False] if not arguments.no_eager else []) + ([True] if arguments.compile else [])
    failed = 0
    for compiled in modes:
        for kind, job in jobs(arguments):
            try:
                time_work(kind, compiled, job)
            except Exception as error:  # memory, or a compiler that fails: the others are timed
                text = str(error).strip().splitlines()[:1]
                print(f"failed: {kind}, compiled {compiled}: {type(error).__name__}: {text}", file=sys.stderr)
                failed = 1
    sys.exit(failed)


if __name__ == "__main__":
    main()
