"""Times PyTorch's single operations beside those of dev/bench/bench_ops: the same shapes. One JSON object a line.

    bench_ops -json ops.json && python dev/reference/bench_kernels.py ops.json

On a GPU in bf16, convolutions channels_last, with cuDNN's choice among its algorithms; on a CPU in float32. Eager mode:
an operation that is one kernel here may be several there, such as a linear layer and its GELU. Backwards are PyTorch's
own functions where it has one, else torch.autograd.grad on a graph that is kept; then the host's way through the graph
counts where the work is short. Calls rotate over sets of tensors as in bench_ops, 64 at most. Without a counterpart:
groupnorm_apply.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F


class Tensors:
    """Random tensors of a case: `x` as activations are, `s` as statistics and optimisers' state are."""

    def __init__(self, device):
        self.device = device
        self.type = torch.bfloat16 if device == "cuda" else torch.float32

    def x(self, *shape, grad=False):
        return torch.empty(shape, dtype=self.type, device=self.device).uniform_(-1, 1).requires_grad_(grad)

    def s(self, *shape):
        return torch.empty(shape, device=self.device).uniform_(0.1, 1)

    def map(self, z, grad=False, channels=None):
        """(B, H, W, C) in memory, (B, C, H, W) to PyTorch."""
        t = self.x(z["B"], channels or z["C"], z["H"], z["W"])
        return t.contiguous(memory_format=torch.channels_last).requires_grad_(grad)


def backward_of(outputs, inputs, gradients):
    return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)


# ---- One function an operation: makes the tensors, returns the call ---------------------------------------------------

def conv_parts(t, z):
    pad = 1 if z["K"] == 4 else z["K"] // 2
    weight = t.x(z["OC"], z["C"], z["K"], z["K"]).contiguous(memory_format=torch.channels_last)
    return t.map(z), weight, t.x(z["OC"]), pad


def conv2d_forward(t, z):
    x, weight, bias, pad = conv_parts(t, z)
    return lambda: F.conv2d(x, weight, bias, z["stride"], pad)


def conv_backward(t, z, mask):
    x, weight, bias, pad = conv_parts(t, z)
    dout = torch.empty_like(F.conv2d(x, weight, bias, z["stride"], pad)).uniform_(-1, 1)
    call, stride, one, zero = torch.ops.aten.convolution_backward, [z["stride"]] * 2, [1, 1], [0, 0]
    return lambda: call(dout, x, weight, [z["OC"]], stride, [pad, pad], one, False, zero, 1, mask)


def conv2d_backward_data(t, z):
    return conv_backward(t, z, [True, False, False])


def conv2d_backward_weight(t, z):
    return conv_backward(t, z, [False, True, True])


def linear_parts(t, z):
    return t.x(z["B"] * z["H"], z["C"]), t.x(z["OC"], z["C"]), t.x(z["OC"])


def matmul_forward(t, z):
    x, weight, bias = linear_parts(t, z)
    return lambda: F.linear(x, weight, bias)


def matmul_gelu_forward(t, z):
    x, weight, bias = linear_parts(t, z)
    return lambda: F.gelu(F.linear(x, weight, bias))


def matmul_backward(t, z):
    x, weight, _ = linear_parts(t, z)
    dout = t.x(x.shape[0], z["OC"])
    return lambda: (dout @ weight, dout.t() @ x, dout.sum(0))


def attention_parts(t, z, grad):
    qkv = t.x(z["B"], z["H"], 3, z["W"], z["C"], grad=grad)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    return qkv, q, k, v


def attention_forward(t, z):
    _, q, k, v = attention_parts(t, z, False)
    return lambda: F.scaled_dot_product_attention(q, k, v)


def attention_backward(t, z):
    qkv, q, k, v = attention_parts(t, z, True)
    out = F.scaled_dot_product_attention(q, k, v)
    return backward_of(out, qkv, torch.empty_like(out).uniform_(-1, 1))


def layernorm_parts(t, z, grad):
    rows = (z["B"] * z["H"], z["C"])
    return [t.x(*rows, grad=grad) for _ in range(2)] + [t.x(z["C"], grad=grad) for _ in range(3)]


def residual_layernorm(x, y, gamma, weight, bias):
    total = x + gamma * y
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, 1e-6)


def residual_layernorm_forward(t, z):
    parts = layernorm_parts(t, z, False)
    return lambda: residual_layernorm(*parts)


def residual_layernorm_backward(t, z):
    parts = layernorm_parts(t, z, True)
    outputs = residual_layernorm(*parts)
    return backward_of(outputs, parts, [torch.empty_like(out).uniform_(-1, 1) for out in outputs])


def groupnorm_forward(t, z):
    x, weight, bias = t.map(z), t.x(z["C"]), t.x(z["C"])
    return lambda: F.silu(F.group_norm(x, z["K"], weight, bias, 1e-6))


def groupnorm_backward(t, z):
    x, weight, bias = t.map(z, grad=True), t.x(z["C"], grad=True), t.x(z["C"], grad=True)
    return backward_of(F.silu(F.group_norm(x, z["K"], weight, bias, 1e-6)), (x, weight, bias), t.map(z))


def batchnorm(x, weight, bias, chunk):
    return [F.leaky_relu(F.batch_norm(part, None, None, weight, bias, True, 0.1, 1e-5), 0.2) for part in x.split(chunk)]


def batchnorm_leaky_forward(t, z):
    x, weight, bias = t.map(z), t.s(z["C"]), t.s(z["C"])
    return lambda: batchnorm(x, weight, bias, z["chunk"])


def batchnorm_leaky_backward(t, z):
    x, weight, bias = t.map(z, grad=True), t.s(z["C"]).requires_grad_(), t.s(z["C"]).requires_grad_()
    return backward_of(batchnorm(x, weight, bias, z["chunk"]), (x, weight, bias), t.map(z).split(z["chunk"]))


def maxpool_forward(t, z):
    x = t.map(z)
    return lambda: F.max_pool2d(x, 2)


def maxpool_relu_backward(t, z):
    x = t.map(z, grad=True)
    tap = F.relu(x)
    pooled = F.max_pool2d(tap, 2)
    return backward_of((pooled, tap), x, (torch.empty_like(pooled).uniform_(-1, 1), t.map(z)))


def upsample_forward(t, z):
    x = t.map(z)
    return lambda: F.interpolate(x, scale_factor=2.0, mode="nearest")


def upsample_backward(t, z):
    x = t.map(z, grad=True)
    out = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return backward_of(out, x, torch.empty_like(out).uniform_(-1, 1))


def gelu_backward(t, z):
    dout, pre = t.map(z), t.map(z)
    return lambda: torch.ops.aten.gelu_backward(dout, pre)


def image_from_bytes(t, z):
    data = torch.randint(0, 256, (z["B"], z["H"], z["W"], z["C"]), dtype=torch.uint8, device=t.device)
    return lambda: data.to(t.type) / 127.5 - 1


def resize_bilinear_forward(t, z):
    x = t.map(z)
    return lambda: F.interpolate(x, size=(z["OC"], z["OC"]), mode="bilinear") * 2 + 1


def patchify_forward(t, z):
    p = z["K"]
    x = t.x(z["B"], z["H"] // p, p, z["W"] // p, p, 3)
    return lambda: x.permute(0, 1, 3, 5, 2, 4).contiguous()


def resample(pos, z):
    grid = pos[1:].reshape(1, z["K"], z["K"], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(z["H"], z["W"]), mode="bicubic", antialias=True)
    return torch.cat([pos[:1], grid.permute(0, 2, 3, 1).flatten(0, 2)])


def position_resample_forward(t, z):
    pos = t.s(z["K"] ** 2 + 1, z["C"])
    return lambda: resample(pos, z)


def position_resample_backward(t, z):
    pos = t.s(z["K"] ** 2 + 1, z["C"]).requires_grad_()
    return backward_of(resample(pos, z), pos, t.s(z["H"] * z["W"] + 1, z["C"]))


def token_parts(t, z, grad):
    N = z["H"] * z["W"]
    return t.x(z["B"], N, z["C"], grad=grad), t.x(1, 1, z["C"], grad=grad), t.x(N + 1, z["C"], grad=grad)


def tokens(patches, cls, pos):
    return torch.cat([cls.expand(len(patches), 1, -1), patches], 1) + pos


def tokens_forward(t, z):
    parts = token_parts(t, z, False)
    return lambda: tokens(*parts)


def tokens_backward(t, z):
    parts = token_parts(t, z, True)
    out = tokens(*parts)
    return backward_of(out, parts, torch.empty_like(out).uniform_(-1, 1))


def l1_forward(t, z):
    xhat, x = t.map(z), t.map(z)
    return lambda: (xhat - x).abs().sum((1, 2, 3))


def l1_backward(t, z):
    xhat, x, dscaled = t.map(z), t.map(z), t.map(z)
    return lambda: torch.add(torch.sign(xhat - x), dscaled, alpha=2)


def tap_distance(f, g, weight):
    u, v = (part / (part.square().sum(1, keepdim=True).sqrt() + 1e-10) for part in (f, g))
    return F.conv2d((u - v).square(), weight).mean((1, 2, 3))


def lpips_tap_forward(t, z):
    f, g, weight = t.map(z), t.map(z), t.x(1, z["C"], 1, 1)
    return lambda: tap_distance(f, g, weight)


def lpips_tap_backward(t, z):
    f, g, weight = t.map(z, grad=True), t.map(z), t.x(1, z["C"], 1, 1)
    return backward_of(tap_distance(F.relu(f), g, weight), f, t.x(z["B"]))


def semantic_l2_forward(t, z):
    latent, z0, groups = t.map(z), t.map(z), z["B"] // z["chunk"]
    return lambda: (latent - z0).square().unflatten(0, (groups, -1)).mean((1, 2, 3, 4))


def hinge_forward(t, z):
    real, fake, groups = t.map(z), t.map(z), z["B"] // z["chunk"]
    return lambda: (F.relu(1 - real) + F.relu(1 + fake)).unflatten(0, (groups, -1)).mean((1, 2, 3, 4))


def add_scaled_groups(t, z):
    a, b, groups = t.x(z["B"], z["H"], z["W"], z["C"]), t.x(z["B"], z["H"], z["W"], z["C"]), z["B"] // z["chunk"]
    omega = t.x(groups, 1, 1, 1).repeat_interleave(z["chunk"], 0)
    return lambda: torch.addcmul(a, omega, b)


def accumulate_scaled_groups(t, z):
    n = z["H"] * z["W"] * z["C"]
    out, a, b, omega = t.s(n), t.s(z["B"], n), t.s(z["B"], n), t.s(z["B"], 1)
    return lambda: out.add_(torch.addcmul(a, omega, b).sum(0))


def sum_squares(t, z):
    x = t.s(z["B"], z["H"] * z["W"] * z["C"])
    return lambda: torch.linalg.vector_norm(x, dim=1)


def rmsnorm_parts(t, z, grad, gated):
    """Stream, branch, weight, and shift, scale, gate of each image; the stream in float32."""
    x = t.s(z["B"], z["H"], z["C"]).requires_grad_(grad)
    branch = t.x(z["B"], z["H"], z["C"], grad=grad) if gated else None
    vectors = [t.x(z["B"], 1, z["C"], grad=grad) for _ in range(3 if gated else 2)]
    return x, branch, t.x(z["C"], grad=grad), vectors


def rmsnorm_modulate(x, branch, weight, vectors):
    if branch is not None:
        x = x + vectors[2] * branch
    normalised = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)).to(weight.dtype) * weight
    return x, normalised * (1 + vectors[1]) + vectors[0]


def rmsnorm_calls(t, z, backward, gated):
    parts = rmsnorm_parts(t, z, backward, gated)
    if not backward:
        return lambda: rmsnorm_modulate(*parts)
    outputs = rmsnorm_modulate(*parts)
    outputs = outputs if gated else outputs[1:]
    leaves = [part for part in (*parts[:3], *parts[3]) if part is not None]
    return backward_of(outputs, leaves, [torch.empty_like(out).uniform_(-1, 1) for out in outputs])


def norm_modulate_forward(t, z):
    return rmsnorm_calls(t, z, False, False)


def norm_modulate_backward(t, z):
    return rmsnorm_calls(t, z, True, False)


def gated_norm_modulate_forward(t, z):
    return rmsnorm_calls(t, z, False, True)


def gated_norm_modulate_backward(t, z):
    return rmsnorm_calls(t, z, True, True)


def rope_parts(t, z, grad):
    qk = t.x(z["B"], z["H"], 2, z["W"], z["C"], grad=grad)
    angles = t.s(z["H"], 1, 1, z["C"] // 2)
    norm = t.x(z["C"], grad=grad) if z["K"] else None
    return qk, norm, angles.cos(), angles.sin()


def qknorm_rope(qk, norm, cos, sin):
    if norm is not None:
        qk = F.rms_norm(qk, qk.shape[-1:], norm, 1e-6)
    a, b = qk[..., 0::2], qk[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(qk.dtype)


def qknorm_rope_forward(t, z):
    parts = rope_parts(t, z, False)
    return lambda: qknorm_rope(*parts)


def qknorm_rope_backward(t, z):
    parts = rope_parts(t, z, True)
    out = qknorm_rope(*parts)
    return backward_of(out, [p for p in parts[:2] if p is not None], torch.empty_like(out).uniform_(-1, 1))


def swiglu(x):
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


def swiglu_forward(t, z):
    x = t.x(z["B"] * z["H"], 2 * z["C"])
    return lambda: swiglu(x)


def swiglu_backward(t, z):
    x = t.x(z["B"] * z["H"], 2 * z["C"], grad=True)
    out = swiglu(x)
    return backward_of(out, x, torch.empty_like(out).uniform_(-1, 1))


def flow_loss(t, z):
    """With its gradient, the way there included, as ours has it."""
    v = t.x(z["B"], z["H"] * z["W"], z["C"], grad=True)
    u = t.s(z["B"], z["H"] * z["W"], z["C"])

    def call():
        loss = (v.float() - u).square().mean() + (1 - F.cosine_similarity(v.float(), u, dim=-1)).mean()
        return torch.autograd.grad(loss, v)
    return call


def adam_update(t, z):
    """With two moving averages, or K of them; PyTorch's autocast casts the weights at their use, not here."""
    weight = torch.nn.Parameter(t.s(z["B"] * z["H"] * z["W"] * z["C"]))
    weight.grad = t.s(weight.numel())
    averages = [weight.detach().clone() for _ in range(z["K"] or 2)]
    optimizer = torch.optim.Adam([weight], lr=1e-4, betas=(0.5, 0.9), fused=True)

    def call():
        optimizer.step()
        with torch.no_grad():
            for average in averages:
                average.lerp_(weight, 1e-3)
    return call


def exchange_weights(t, z):
    master, other = (t.s(z["B"] * z["H"] * z["W"] * z["C"]) for _ in range(2))
    weight = master.to(t.type)

    def call():
        kept = master.clone()
        master.copy_(other)
        other.copy_(kept)
        weight.copy_(master)
    return call


# ---- Time ------------------------------------------------------------------------------------------------------------

def seconds_of(calls, device):
    """Seconds of calling each of `calls`."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def measure(function, z, runs, device):
    """Median microseconds of a call; short ones are repeated until a run lasts a few milliseconds."""
    t = Tensors(device)
    sets = [function(t, z) for _ in range(min(z["sets"], 64))]
    seconds_of(sets[:1], device)  # cuDNN chooses
    once = max(seconds_of(sets[:1], device), 1e-6)
    count = min(int(0.004 / once) + 1, 2000)
    calls = [sets[i % len(sets)] for i in range(count)]
    return statistics.median(seconds_of(calls, device) for _ in range(runs)) / count * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="JSON lines of bench_ops")
    parser.add_argument("--only", default="", help="operations or places with this in their name")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--seconds", type=float, default=1e9, help="what is not begun by then is left out")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    begin = time.monotonic()
    with open(arguments.source) as file:
        lines = [json.loads(line) for line in file]
    for z in lines:
        if z["kind"] != "op" or arguments.only not in z["name"] + " " + z["where"]:
            continue
        function = globals().get(z["name"])
        if function is None:
            continue
        if time.monotonic() - begin > arguments.seconds:
            print(f"no time left: {z['name']}, {z['where']}, and what follows", file=sys.stderr, flush=True)
            break
        try:
            us = measure(function, z, arguments.runs, device)
        except Exception as error:  # memory, or a case that this version cannot do: the others are timed
            text = str(error).strip().splitlines()[:1]
            print(f"failed: {z['name']}, {z['where']}: {type(error).__name__}: {text}", file=sys.stderr, flush=True)
            continue
        print(json.dumps({"kind": "op", "name": z["name"], "where": z["where"], "mode": "eager", "us": round(us, 2),
                          "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
