"""Times PyTorch on the work that dev/bench times in C: whole models and training steps. One JSON object a line.

    python dev/reference/bench_torch.py                       encode, decode and a miniature step of stage 2
    python dev/reference/bench_torch.py step --config '{"stage": 1, "batch": 32}'
    python dev/reference/bench_torch.py --from models.json    what `bench_models -json models.json` timed
    python dev/reference/bench_torch.py --from models.json --compile 60    then again with torch.compile

encode  DINOv2-L tokens of --batch 256x256 images, with resize and normalisation, no gradients
decode  the LDM decoder (ch 128, mult 1 1 2 2 4, z 32) on --batch 16x16 latents, no gradients
step    one training step of the tokenizer: losses, both adaptive weights by autograd as VA-VAE's code takes them, both
        Adams, two moving averages, the loss on the host; STEP below lists what --config can change. Its defaults are
        those of `train_tokenizer -preset mini`.

Images, adaptive weights and BatchNorm statistics go chunk by chunk, as in the reference, where a GPU held one chunk; a
frozen encoder takes the batch at once. On a GPU: bf16 autocast, channels_last, fused Adam, frozen networks in bf16, TF32
for what autocast leaves in float32. On a CPU: float32. "mode" says "eager" or "compiled": torch.compile of the blocks
(ResBlocks, attention, upsampling, ViT blocks, LPIPS, discriminator), of which equal ones are compiled once. Compiling
ends after --compile seconds in all; what had no time then has no compiled line.
Weights are PyTorch's initial ones: the time doesn't depend on them. Needs torch and timm, nothing else.
"""
import argparse
import copy
import gc
import json
import signal
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from bench_networks import (LPIPS, Adapter, AttnBlock, Decoder, Discriminator, ResBlock, Upsample, encode,
                            encoder_input, make_vit)

STEP = dict(stage=2, batch=32, chunk=8, image=32, patch=7, pos_grid=4, embed=96, depth=4, heads=3, adapter_hidden=32,
            z_channels=16, ch=16, ch_mult=[1, 2, 4, 4], num_res_blocks=1, groups=8, lpips_channels=[16, 32, 64], ndf=16,
            lr=1e-3)
COMPILED = (ResBlock, AttnBlock, Upsample, Block, LPIPS, Discriminator)
CHANNELS_LAST = dict(memory_format=torch.channels_last)


def half(device):
    """bf16 on a GPU; nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")


def freeze(module, device):
    module.requires_grad_(False)
    return module.to(torch.bfloat16) if device == "cuda" else module


class Encode:
    def __init__(self, batch, device):
        self.device = device
        self.vit = freeze(make_vit(), device)
        self.modules = [self.vit]
        self.image = torch.rand(batch, 3, 256, 256) * 2 - 1

    @torch.no_grad()
    def run(self):
        with half(self.device):
            return encode(self.vit, encoder_input(self.image))


class Decode:
    def __init__(self, batch, device):
        self.device = device
        self.decoder = freeze(Decoder(), device).to(**CHANNELS_LAST)
        self.modules = [self.decoder]
        self.z = torch.randn(batch, 32, 16, 16).to(**CHANNELS_LAST)

    @torch.no_grad()
    def run(self):
        with half(self.device):
            return self.decoder(self.z)


def adaptive_weight(numerator, denominator, tensor, weight, clip):
    """weight * clip(|d numerator / d tensor| / (|d denominator / d tensor| + 1e-4)), a constant."""
    norms = [torch.autograd.grad(loss, tensor, retain_graph=True)[0].norm() for loss in (numerator, denominator)]
    return weight * torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, clip).detach()


class Step:
    """The tokenizer with everything that a training step needs."""

    def __init__(self, config, device):
        self.config = c = config
        self.stage, self.device = c["stage"], device
        self.grid = c["image"] // 16 * 14 // c["patch"]
        self.vit = make_vit(c["patch"], c["pos_grid"], c["embed"], c["depth"], c["heads"])
        self.adapter = Adapter(c["embed"], c["adapter_hidden"], c["z_channels"])
        decoder = Decoder(c["ch"], c["ch_mult"], c["num_res_blocks"], c["z_channels"], c["groups"])
        self.decoder = decoder.to(**CHANNELS_LAST)
        self.discriminator = Discriminator(c["ndf"]).to(**CHANNELS_LAST)
        self.lpips = freeze(LPIPS(c["lpips_channels"]), device).to(**CHANNELS_LAST)
        if self.stage == 2:
            self.previous = freeze(copy.deepcopy(nn.ModuleList([self.vit, self.adapter])), device)
        else:
            freeze(self.vit, device)
        if self.stage == 3:
            freeze(self.adapter, device)
        self.modules = [self.vit, self.decoder, self.discriminator, self.lpips]
        self.modules += [self.previous] if self.stage == 2 else []
        parts = (self.vit, self.adapter, self.decoder)
        self.trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.averages = [[p.detach().clone() for p in self.trained] for _ in range(2)]
        adam = dict(lr=c["lr"], betas=(0.5, 0.9), fused=device == "cuda")
        self.optimizer = torch.optim.Adam(self.trained, **adam)
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), **adam)
        image = torch.rand(c["batch"], 3, c["image"], c["image"]) * 2 - 1
        self.images = image.to(**CHANNELS_LAST)

    @torch.no_grad()
    def frozen_tokens(self, pixels):
        """What no gradient is wanted for, of all images: tokens, or in stage 2 z0."""
        if self.stage == 2:
            return self.previous[1](encode(self.previous[0], pixels))
        tokens = encode(self.vit, pixels)
        return self.adapter(tokens) if self.stage == 3 else tokens

    def generator_loss(self, image, pixels, frozen):
        """The loss of one chunk with its adaptive weights, and the reconstruction."""
        z = frozen if self.stage == 3 else self.adapter(encode(self.vit, pixels) if self.stage == 2 else frozen)
        latent = z.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        reconstruction = self.decoder(latent.contiguous(**CHANNELS_LAST))
        count = len(image)
        values = image[0].numel()
        nll = ((image - reconstruction).abs().sum() + values * self.lpips(image, reconstruction).sum()) / count
        loss_g = -self.discriminator(reconstruction).mean()
        loss = nll + adaptive_weight(nll, loss_g, self.decoder.conv_out.weight, 0.5, 1e4) * loss_g
        if self.stage == 2:
            loss_sem = F.mse_loss(z, frozen)
            loss = loss + adaptive_weight(nll, loss_sem, self.adapter.fc2.weight, 1.0, 1e8) * loss_sem
        return loss, reconstruction.detach()

    def run(self):
        size = self.config["chunk"]
        chunks = self.images.split(size)
        reconstructions, total = [], 0.0
        self.optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        with half(self.device):
            pixels = encoder_input(self.images)
            frozen = self.frozen_tokens(pixels)
        for image, p, f in zip(chunks, pixels.split(size), frozen.split(size)):
            with half(self.device):
                loss, reconstruction = self.generator_loss(image, p, f)
            (loss / len(chunks)).backward(inputs=self.trained)
            reconstructions.append(reconstruction)
            total = total + loss.detach()
        self.optimizer.step()
        self.discriminator.requires_grad_(True)
        self.optimizer_d.zero_grad()
        for image, reconstruction in zip(chunks, reconstructions):
            with half(self.device):
                real, fake = self.discriminator(image), self.discriminator(reconstruction)
                loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
            (loss / len(chunks)).backward()
        self.optimizer_d.step()
        with torch.no_grad():
            for average in self.averages:
                torch._foreach_lerp_(average, self.trained, 1e-3)
        return float(total)


# ---- Time ------------------------------------------------------------------------------------------------------------

def measure(work, runs, device):
    """Median wall, shortest wall and median CPU seconds of `runs` calls after one for warming up; on a GPU the time
    between two events."""
    work()
    wall, cpu = [], []
    for _ in range(runs):
        cpu_start = time.process_time()
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            wall.append(begin.elapsed_time(end) / 1e3)
        else:
            wall_start = time.perf_counter()
            work()
            wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return statistics.median(wall), min(wall), statistics.median(cpu)


class OutOfTime(BaseException):
    """Not an Exception, so that no handler on the way takes it for its own."""


def raise_out_of_time(*_):
    raise OutOfTime


def compile_blocks(model):
    """torch.compile of all blocks of a model, done when they are first called."""
    import torch._dynamo
    import torch._functorch.config
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 256)
    if hasattr(torch._functorch.config, "donated_buffer"):
        torch._functorch.config.donated_buffer = False  # a graph is used again for the adaptive weights
    for module in model.modules:
        for part in module.modules():
            if isinstance(part, COMPILED):
                part.compile(dynamic=False)


def print_line(case, mode, times, runs, device):
    seconds, best, cpu_seconds = times
    cuda = device == "cuda"
    line = {"kind": "model", "name": case["name"], "images": case["images"], "mode": mode,
            "seconds": round(seconds, 6), "best_seconds": round(best, 6), "cpu_seconds": round(cpu_seconds, 6),
            "runs": runs, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else 0}
    if "config" in case:
        line["config"] = case["config"]
    print(json.dumps(line), flush=True)


def make(case, device):
    with torch.device(device):
        if case["name"] == "encode":
            return Encode(case["images"], device)
        return Decode(case["images"], device) if case["name"] == "decode" else Step(case["config"], device)


def run_case(case, compiled, runs, device):
    """Times one case and prints its line. Returns whether there was time."""
    mode = "compiled" if compiled else "eager"
    try:
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = make(case, device)
        if compiled:
            compile_blocks(model)
        print_line(case, mode, measure(model.run, runs, device), runs, device)
    except OutOfTime:
        print(f"no time left: {mode} {case['name']} of {case['images']} images", file=sys.stderr, flush=True)
        return False
    except Exception as error:  # memory, or a compiler that fails: the others are timed
        text = str(error).strip().splitlines()[:1]
        print(f"failed: {mode} {case['name']} of {case['images']} images: {type(error).__name__}: {text}",
              file=sys.stderr, flush=True)
    return True


def cases_of(arguments):
    if arguments.source:
        with open(arguments.source) as file:
            lines = [json.loads(line) for line in file]
        cases = [{key: line[key] for key in ("name", "images", "config") if key in line}
                 for line in lines if line["kind"] == "model"]
        return [c for c in cases if not arguments.what or c["name"].rstrip("123") in arguments.what]
    config = STEP | arguments.config
    cases = []
    for name in arguments.what or ("encode", "decode", "step"):
        cases.append({"name": name, "images": arguments.batch} if name != "step" else
                     {"name": name, "images": config["batch"], "config": config})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="encode, decode, step; default: all")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON object that changes STEP")
    parser.add_argument("--from", dest="source", help="JSON lines of bench_models: the same cases")
    parser.add_argument("--batch", type=int, default=1, help="images of encode and decode")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--compile", type=float, default=0, metavar="SECONDS", help="then with torch.compile")
    parser.add_argument("--no-eager", action="store_true", help="leave the eager mode out")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; default: PyTorch's")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    unknown = (set(arguments.what) - {"encode", "decode", "step"}) | (set(arguments.config) - set(STEP))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: encode, decode, step; {', '.join(STEP)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases = cases_of(arguments)
    for case in cases:
        if not arguments.no_eager:
            run_case(case, False, arguments.runs, device)
    if arguments.compile > 0:
        signal.signal(signal.SIGALRM, raise_out_of_time)
        signal.setitimer(signal.ITIMER_REAL, arguments.compile)
        for case in cases:
            if not run_case(case, True, arguments.runs, device):
                break
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
