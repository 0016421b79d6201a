"""What a fixture file is made of: numbers that C can compute too, the file itself, and its paragraph in the README.

Look next at make_fixtures.py, make_dit_fixtures.py and make_variation_fixtures.py, whose cases return a Fixture, and
at tests/fixtures/README.md.
"""
import argparse
import inspect
import io
import json
import math
import pathlib
import struct

import numpy as np
import safetensors.numpy
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DTYPE = torch.float64
SAMPLE_ABOVE = 1024  # elements; larger gradients of `sampled` fixtures are not stored whole
SAMPLES = 512        # about so many elements are kept of them
SMALLEST_MARGIN = 2e-5


# ---- Numbers ---------------------------------------------------------------------------------------------------------

def uniform(name, count):
    """`count` numbers in [-1, 1), multiples of 2^-23: a 32-bit hash of the FNV-1a hash of `name` and the index."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 & 0xFFFFFFFF
    u = (seed + np.arange(count, dtype=np.uint64) * 2654435761) & 0xFFFFFFFF
    for _ in range(2):
        u = ((u ^ (u >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    u ^= u >> 16
    return (u >> 8) / 2.0**23 - 1.0


def fill(name, shape, base=0.0, amplitude=1.0):
    """base + amplitude * uniform, rounded to float32. Amplitudes are powers of two, so only the sum rounds."""
    values = base + amplitude * uniform(name, math.prod(shape))
    return torch.from_numpy(values.astype(np.float32)).to(DTYPE).reshape(shape)


def philox(seed, stream, step, count):
    """The first 4 `count` random words of a stream: Philox4x32-10 (Salmon et al. 2011), counter and key as rng.h packs
    them."""
    low = np.uint64(0xFFFFFFFF)
    index = np.arange(count, dtype=np.uint64)
    counter = [index & low, index >> np.uint64(32), np.full_like(index, step & 0xFFFFFFFF),
               np.full_like(index, step >> 32 | stream << 24)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [second >> np.uint64(32) ^ counter[1] ^ np.uint64(key[0]), second & low,
                   first >> np.uint64(32) ^ counter[3] ^ np.uint64(key[1]), first & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(counter, axis=1).reshape(-1)


def philox_normal(seed, stream, step, begin, count):
    """Standard normal numbers `begin` to `begin + count` of a stream (Box and Muller), to 1e-6 those of rng.h, which
    computes in float32. What it takes the logarithm of is rounded as there."""
    words = philox(seed, stream, step, -(-(begin + count) // 4)).reshape(-1, 2)
    u = (words[:, 0].astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float32)
    radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
    angle = 2 * np.pi * (words[:, 1] / 2.0**32 - 1 / 8)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[begin:begin + count]


# ---- Files -----------------------------------------------------------------------------------------------------------

def nhwc(t):
    return t.permute(0, 2, 3, 1)


class Fixture:
    """The tensors and the configuration of one file."""

    def __init__(self, **config):
        self.config = config
        self.tensors = {}
        self.margins = []  # from away_from_kinks

    def add(self, name, value):
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        assert torch.isfinite(value).all(), f"{name} holds an infinity or a NaN"
        assert name not in self.tensors, f"{name} was added before"
        self.tensors[name] = np.ascontiguousarray(value.numpy().astype("<f4"))

    def image(self, name, value):
        self.add(name, nhwc(value))

    def parameters(self, model, rules, generated=False):
        """param.<name> as in the public file, or generate.<name> = [base, amplitude, count]."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, (base, amplitude) in rules.items():
            if generated:
                self.add(f"generate.{name}", [base, amplitude, tensors[name].numel()])
            else:
                self.add(f"param.{name}", tensors[name])

    def gradients(self, gradients, sampled=False):
        """grad.<name>, or for large ones of a `sampled` fixture gradsample.<name> and gradcheck.<name>. Gradients that
        are zero by the mathematics (rounding noise here) are left out and named in the configuration."""
        largest = max(float(g.norm()) for g in gradients.values())
        zero = [name for name, g in gradients.items() if float(g.norm()) < 1e-11 * largest]
        self.config["zero_gradients"] = self.config.get("zero_gradients", []) + zero
        for name, gradient in gradients.items():
            if name in zero:
                continue
            if sampled and gradient.numel() > SAMPLE_ABOVE:
                self.sampled_gradient(name, gradient.detach().flatten())
            else:
                self.add(f"grad.{name}", gradient)

    def sampled_gradient(self, name, gradient):
        count = gradient.numel()
        stride = math.ceil(count / SAMPLES)
        while count % stride == 0 or any(stride % d == 0 for d in range(2, math.isqrt(stride) + 1)):
            stride += 1  # a prime that doesn't divide the count walks through all rows, channels and taps
        projection = gradient @ torch.from_numpy(uniform(f"grad.{name}", count)).to(DTYPE)
        self.add(f"gradsample.{name}", gradient[::stride])
        self.add(f"gradcheck.{name}", [stride, gradient.norm(), projection])

    def write(self, path, versions):
        """safetensors: length of the header, header, data. Written here because the package's own writer gives the
        entries of the metadata in a random order."""
        data = io.BytesIO()
        assert min(self.margins, default=1.0) > SMALLEST_MARGIN, f"{path.name}: an activation lies at a kink"
        header = {"__metadata__": {"config": json.dumps(self.config), "versions": json.dumps(versions)}}
        for name in sorted(self.tensors):
            begin = data.tell()
            data.write(self.tensors[name].tobytes())
            shape = list(self.tensors[name].shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, data.tell()]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + data.getvalue())
        assert safetensors.numpy.load_file(path).keys() == self.tensors.keys()


def parameter_gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def backward_from(fixture, name, output, shape_of_file=lambda t: t):
    """Adds output.<name> and a random upstream gradient dout.<name>, and runs the backward of sum(output * dout)."""
    dout = fill(f"dout.{name}", output.shape)
    fixture.add(f"output.{name}", shape_of_file(output))
    fixture.add(f"dout.{name}", shape_of_file(dout))
    (output * dout).sum().backward()


# ---- The page --------------------------------------------------------------------------------------------------------

def describe(name, case, fixture, size):
    """The README's paragraph of one file."""
    shown, counts = [], {}
    for tensor, value in sorted(fixture.tensors.items()):
        kind = tensor.split(".")[0]
        if kind in ("input", "output", "dinput"):
            shown.append(f"`{tensor}` {list(value.shape)}")
        elif kind == "dout":
            shown.append(f"`{tensor}` like its output")
        else:
            counts[kind] = counts.get(kind, 0) + 1
    shown += [f"{count} `{kind}.*`" for kind, count in counts.items()]
    config = {k: v for k, v in fixture.config.items() if k != "zero_gradients"}
    zero = len(fixture.config.get("zero_gradients", []))
    lines = [f"### {name}.safetensors ({size / 1024:.0f} KiB)", " ".join(inspect.getdoc(case).split()), "",
             f"- config: `{json.dumps(config)}`" + (f" and {zero} `zero_gradients`" if zero else ""),
             "- " + ", ".join(shown), ""]
    return "\n".join(lines)


def write_page(path, head, paragraphs):
    """Puts the paragraphs {file: text} into the page, in place of older ones; other files' paragraphs stay. `head` is
    what stands above them, or None to leave that."""
    old_head, *old = path.read_text().split("\n### ") if path.exists() else [""]
    kept = {text.split(".safetensors")[0]: f"### {text.rstrip()}\n" for text in old}
    path.write_text((head or old_head).rstrip() + "\n" + "\n".join((kept | paragraphs).values()))


def run(description, cases, versions, head=None):
    """The program of a script of cases: makes those that the command line names and describes them in the README."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="case", help="fixtures to make; default: all")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=REPOSITORY / "tests" / "fixtures", help="folder")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {case.__name__ for case in cases}
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(case.__name__ for case in cases)}")
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    paragraphs, total = {}, 0
    for case in cases:
        if arguments.cases and case.__name__ not in arguments.cases:
            continue
        path = arguments.output / f"{case.__name__}.safetensors"
        fixture = case()
        fixture.write(path, versions)
        size = path.stat().st_size
        total += size
        paragraphs[case.__name__] = describe(case.__name__, case, fixture, size)
        print(f"{path.name:34} {size:9,} bytes  {len(fixture.tensors):4} tensors")
    print(f"{total:,} bytes in all")
    if arguments.cases:
        head = None  # it names the versions that made all
    example = ", ".join(f"{x:.8f}" for x in uniform("conv_in.weight", 3))
    listed = ", ".join(f"{k} {v}" for k, v in versions.items())
    write_page(arguments.output / "README.md", head and head.format(versions=listed, example=example), paragraphs)
