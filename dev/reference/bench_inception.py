"""Times PyTorch on what FID wants of an image: Inception's features. One JSON object a measurement.

    python dev/reference/bench_inception.py --batch 64 --compile      on a GPU: float32 and bf16
    python dev/reference/bench_inception.py --batch 8 --threads 1     on a CPU: float32
    python dev/reference/bench_inception.py --from models.json        what `bench_models -only inception -json` timed

A call takes --batch images of 256x256 bytes that are on the device already: / 255, pytorch-fid's bilinear resize to
299x299, its network, the 2048 features, the 7 channels of Mixed_6d that sFID compares, and logits without the bias.

The module is pytorch-fid's own, in eval mode, with random weights: the time doesn't depend on them, and nothing is
downloaded. Where the package is missing, torchvision's inception_v3 with 1008 outputs takes its place: the same
convolutions, other means at the edges, a mean for a maximum. Its BatchNorm stays unfolded, as everybody runs it.

On a GPU float32 has TF32 in convolutions, PyTorch's default; --no-tf32 takes it away. bf16 is autocast's. cuDNN chooses
its kernels by trying them (cudnn.benchmark). Tensors are channels_last, which is faster on a GPU in bf16 and on this
project's CPUs; --channels-first is how pytorch-fid calls the module. --compile: torch.compile of the network, after the
eager figures (--no-eager leaves those out).
A time is the median of --repeats, each of --runs calls, after --warmup calls; cpu_seconds is that of all threads of the
process. tflops counts 2 FLOP a multiply-accumulate. Needs torch and torchvision, and pytorch-fid where it can be had.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import inception_v3

try:
    from pytorch_fid import inception as fid
except ImportError:
    fid = None

GMACS = 5.713  # an image


def make_network():
    """The network with random weights that keep the size of what passes through it, and where it comes from."""
    options = dict(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    if fid:
        state = inception_v3(**options).state_dict()  # the same names and shapes: fid_inception_v3 loads it
        fid.load_state_dict_from_url = lambda *_, **__: state
        net, source = fid.fid_inception_v3(), "pytorch-fid"
    else:
        net, source = inception_v3(**options), "torchvision"
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net.eval().requires_grad_(False), source


class Features(nn.Module):
    """pytorch-fid's InceptionV3.forward, with the two outputs beside the features that `eval` takes."""

    def __init__(self):
        super().__init__()
        net, self.source = make_network()
        self.before = nn.Sequential(
            net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, nn.MaxPool2d(3, 2), net.Conv2d_3b_1x1,
            net.Conv2d_4a_3x3, nn.MaxPool2d(3, 2), net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b,
            net.Mixed_6c, net.Mixed_6d)
        self.after = nn.Sequential(net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c)
        self.fc = net.fc.weight

    def forward(self, pixels):
        x = F.interpolate(pixels.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
        x = self.before(2 * x - 1)
        spatial = x[:, :7]  # Mixed_6d's first branch comes first in its output
        pool = self.after(x).mean((2, 3))
        return pool.float(), spatial.float(), F.linear(pool.float(), self.fc)


class Work:
    def __init__(self, precision, compiled, arguments):
        self.device, self.bf16 = arguments.device, precision == "bf16"
        self.format = torch.contiguous_format if arguments.channels_first else torch.channels_last
        with torch.device(arguments.device):
            self.network = Features().to(memory_format=self.format)
            pixels = torch.randint(256, (arguments.batch, 256, 256, 3), dtype=torch.uint8)
        self.pixels = pixels.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
        self.source = self.network.source
        if compiled:
            self.network.compile(dynamic=False)

    @torch.no_grad()
    def run(self):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.network(self.pixels)


# ---- Time ------------------------------------------------------------------------------------------------------------

def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure(work, arguments):
    """Seconds of a call: median and shortest, and median CPU time."""
    for _ in range(arguments.warmup):
        work()
    seconds, cpu = [], []
    for _ in range(arguments.repeats):
        wait(arguments.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(arguments.runs):
            work()
        wait(arguments.device)
        seconds.append((time.perf_counter() - start) / arguments.runs)
        cpu.append((time.process_time() - cpu_start) / arguments.runs)
    return statistics.median(seconds), min(seconds), statistics.median(cpu)


def time_work(name, precision, compiled, arguments):
    cuda = arguments.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work = Work(precision, compiled, arguments)
    seconds, best, cpu = measure(work.run, arguments)
    rate = arguments.batch / seconds
    tf32 = cuda and precision == "fp32" and not arguments.no_tf32
    line = dict(kind="model", name=name, images=arguments.batch,
                mode=("compiled" if compiled else "eager") + (" TF32" if tf32 else ""), precision=precision,
                images_per_second=float(f"{rate:.4g}"), tflops=float(f"{rate * 2 * GMACS / 1e3:.4g}"),
                seconds=round(seconds, 6), best_seconds=round(best, 6), cpu_seconds=round(cpu, 6), gmacs=GMACS,
                network=work.source, layout="channels first" if arguments.channels_first else "channels last",
                threads=torch.get_num_threads(), torch=torch.__version__,
                device=torch.cuda.get_device_name() if cuda else "cpu",
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else 0)
    print(json.dumps(line), flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=0, help="images; default: 64 on a GPU, 8 on a CPU")
    parser.add_argument("--precision", default="", help="fp32, bf16 or both, with a comma; default: both on a GPU, else fp32")
    parser.add_argument("--no-tf32", action="store_true", help="float32 in all products of a GPU")
    parser.add_argument("--channels-first", action="store_true", help="NCHW in memory")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--no-eager", action="store_true", help="leave the eager mode out")
    parser.add_argument("--runs", type=int, default=1, help="calls in a row")
    parser.add_argument("--warmup", type=int, default=2, help="calls before those that count")
    parser.add_argument("--repeats", type=int, default=5, help="times of which the median counts")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: PyTorch's choice")
    parser.add_argument("--from", dest="source", default="", help="JSON lines of bench_models: the same sizes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = arguments.device == "cuda"
    arguments.batch = arguments.batch or (64 if cuda else 8)
    arguments.precision = (arguments.precision or ("fp32,bf16" if cuda else "fp32")).split(",")
    if set(arguments.precision) - {"fp32", "bf16"}:
        parser.error("--precision: fp32, bf16")
    if min(arguments.batch, arguments.runs, arguments.repeats) < 1:
        parser.error("--batch, --runs and --repeats are at least 1")
    return arguments


def jobs(arguments):
    """What is to be timed: name, precision and images. Names are those of bench_models."""
    if not arguments.source:
        cuda = arguments.device == "cuda"
        return [("inception_fp32" if cuda and precision == "fp32" else "inception", precision, arguments.batch)
                for precision in arguments.precision]
    with open(arguments.source) as file:
        lines = [line for line in map(json.loads, file) if line.get("name", "").startswith("inception")]
    return [(line["name"], "bf16" if line["config"]["precision"] == "bf16" else "fp32", line["config"]["batch"])
            for line in lines]


def main():
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = not arguments.no_tf32
    modes = ([False] if not arguments.no_eager else []) + ([True] if arguments.compile else [])
    failed = 0
    for compiled in modes:
        for name, precision, batch in jobs(arguments):
            arguments.batch = batch
            try:
                time_work(name, precision, compiled, arguments)
            except Exception as error:  # memory, or a compiler that fails: the others are timed
                text = str(error).strip().splitlines()[:1]
                print(f"failed: {precision}, compiled {compiled}: {type(error).__name__}: {text}", file=sys.stderr)
                failed = 1
    sys.exit(failed)


if __name__ == "__main__":
    main()
