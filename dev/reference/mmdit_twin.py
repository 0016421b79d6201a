"""The FLUX-style transformer in plain PyTorch: the text-to-image transformer of common/models/mmdit.h. Parameters have
FLUX's names and shapes.

    s = SiLU(time_in(features of 1000 t) + vector_in(pooled));    a modulation = linear of s
    double block, in each stream:  x += g1 proj(attention(qkv(LN(x) (1 + sc1) + sh1)))
                                   x += g2 mlp(LN(x) (1 + sc2) + sh2)
    single block:                  x += g linear2([attention(qkv), gelu(u)]), [qkv, u] = linear1(LN(x) (1 + sc) + sh)

Time 0 is data. Captions have different lengths: row l of a caption takes part where `mask` says so. Written from the
mathematics (spec/text_to_image.md); make_mmdit_steps.py compares it with minFM's own answers before it uses it. Look
next at bench_dit.py, which times it.
"""
import torch
import torch.nn.functional as F
from torch import nn

FREQUENCIES = 128
SIZES = {  # dim, heads, double and single blocks, axes, text, vector
    "2B": (2048, 16, 8, 16, (16, 56, 56), 4096, 768), "2B-deep": (1536, 12, 13, 26, (16, 56, 56), 4096, 768),
    "2B-short": (2048, 16, 7, 14, (16, 56, 56), 4096, 768), "tiny": (1024, 16, 8, 16, (8, 28, 28), 768, 768),
    "t2i-mini": (128, 4, 2, 4, (8, 12, 12), 64, 64),
}


def features(t):
    angle = 1000 * t[:, None] * 10000.0 ** (-torch.arange(FREQUENCIES, dtype=t.dtype, device=t.device) / FREQUENCIES)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotations(axes, rows, h, w, dtype):
    """Cosine and sine (rows + h w, channels of a head / 2): text at 0, then row by row."""
    places = [(0, 0, 0)] * rows + [(0, y, x) for y in range(h) for x in range(w)]
    angles = [torch.tensor([p[a] for p in places], dtype=dtype)[:, None] *
              10000.0 ** (-torch.arange(0, n, 2, dtype=dtype) / n) for a, n in enumerate(axes)]
    angle = torch.cat(angles, dim=1)
    return angle.cos(), angle.sin()


class Embedder(nn.Module):
    def __init__(self, inputs, dim):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(inputs, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.out_layer(F.silu(self.in_layer(x)))


class Lin(nn.Module):
    def __init__(self, dim, chunks):
        super().__init__()
        self.lin, self.chunks = nn.Linear(dim, chunks * dim), chunks

    def forward(self, s):
        return self.lin(s)[:, None].chunk(self.chunks, dim=-1)


class HeadNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class Norms(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.query_norm, self.key_norm = HeadNorm(size), HeadNorm(size)


class StreamAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), Norms(dim // heads)


def modulated(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def heads_of(qkv, norms, heads):
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
    return norms.query_norm(q), norms.key_norm(k), v


def attention(q, k, v, rotation, mask):
    """(B, T, heads, channels) each; neighbouring channels turn together."""
    cosine, sine = (part[:, None] for part in rotation)

    def turn(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (turn(q), turn(k), v))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2)


class DoubleBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        for m in ("txt", "img"):
            setattr(self, f"{m}_mod", Lin(dim, 6))
            setattr(self, f"{m}_attn", StreamAttention(dim, heads))
            setattr(self, f"{m}_mlp", nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim)))

    def forward(self, txt, img, s, rotation, mask):
        streams, rows = {"txt": txt, "img": img}, txt.shape[1]
        mods = {m: getattr(self, f"{m}_mod")(s) for m in streams}
        parts = []
        for m, x in streams.items():
            a = getattr(self, f"{m}_attn")
            parts.append(heads_of(a.qkv(modulated(x, *mods[m][:2])), a.norm, self.heads))
        out = attention(*(torch.cat(pair, dim=1) for pair in zip(*parts)), rotation, mask)
        for m, o in (("txt", out[:, :rows]), ("img", out[:, rows:])):
            x = streams[m] + mods[m][2] * getattr(self, f"{m}_attn").proj(o)
            streams[m] = x + mods[m][5] * getattr(self, f"{m}_mlp")(modulated(x, *mods[m][3:5]))
        return streams["txt"], streams["img"]


class SingleBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.modulation, self.norm = Lin(dim, 3), Norms(dim // heads)
        self.linear1, self.linear2 = nn.Linear(dim, 7 * dim), nn.Linear(5 * dim, dim)

    def forward(self, x, s, rotation, mask):
        shift, scale, gate = self.modulation(s)
        qkv, u = self.linear1(modulated(x, shift, scale)).split([3 * self.dim, 4 * self.dim], dim=-1)
        out = attention(*heads_of(qkv, self.norm, self.heads), rotation, mask)
        return x + gate * self.linear2(torch.cat([out, F.gelu(u, approximate="tanh")], dim=-1))


class Final(nn.Module):
    def __init__(self, dim, channels):
        super().__init__()
        self.linear = nn.Linear(dim, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, s):
        return self.linear(modulated(x, *self.adaLN_modulation[1](s)[:, None].chunk(2, dim=-1)))


class MMDiT(nn.Module):
    def __init__(self, dim, heads, doubles, singles, axes, text, vector, channels, guidance=False):
        super().__init__()
        self.axes = axes
        self.img_in, self.txt_in = nn.Linear(channels, dim), nn.Linear(text, dim)
        self.time_in, self.vector_in = Embedder(2 * FREQUENCIES, dim), Embedder(vector, dim)
        self.guidance_in = Embedder(2 * FREQUENCIES, dim) if guidance else None
        self.double_blocks = nn.ModuleList(DoubleBlock(dim, heads) for _ in range(doubles))
        self.single_blocks = nn.ModuleList(SingleBlock(dim, heads) for _ in range(singles))
        self.final_layer = Final(dim, channels)
        self.tables = {}  # of rotations, by rows and size

    def rotation(self, rows, h, w, like):
        if (rows, h, w) not in self.tables:
            self.tables[rows, h, w] = [part.to(like) for part in rotations(self.axes, rows, h, w, torch.float64)]
        return self.tables[rows, h, w]

    def macs(self, rows, h, w):
        """Of an image's forward."""
        blocks, (D, inputs) = len(self.double_blocks) + len(self.single_blocks), self.txt_in.weight.shape
        T, C, vector = rows + h * w, self.img_in.weight.shape[1], self.vector_in.in_layer.weight.shape[1]
        modulations = 12 * len(self.double_blocks) + 3 * len(self.single_blocks) + 2
        embedders = (2 * FREQUENCIES + vector + 2 * D) * D + rows * inputs * D + 2 * h * w * C * D
        return blocks * (12 * D * D * T + 2 * T * T * D) + modulations * D * D + embedders

    def forward(self, xt, t, text, mask, pooled, guidance=None):
        """xt (B, h, w, C), text (B, L, dt), mask (B, L): True where a row is text; None: everywhere."""
        B, h, w, C = xt.shape
        c = self.time_in(features(t)) + self.vector_in(pooled)
        if guidance is not None:
            c = c + self.guidance_in(features(guidance))
        s = F.silu(c)
        txt, img = self.txt_in(text), self.img_in(xt.reshape(B, h * w, C))
        rotation = self.rotation(text.shape[1], h, w, xt)
        if mask is not None:
            mask = torch.cat([mask, torch.ones(B, h * w, dtype=torch.bool)], dim=1)
        for block in self.double_blocks:
            txt, img = block(txt, img, s, rotation, mask)
        x = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            x = block(x, s, rotation, mask)
        return self.final_layer(x[:, text.shape[1]:], s).reshape(xt.shape)


def make_size(size, channels):
    dim, heads, doubles, singles, axes, text, vector = SIZES[size]
    return MMDiT(dim, heads, doubles, singles, axes, text, vector, channels)
