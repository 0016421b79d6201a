"""LightningDiT in plain PyTorch: the class-conditional diffusion transformer of common/models/lightningdit.h, its loss, its
velocity with guidance, and its grid of times. Parameters have the names and shapes of the published checkpoints.

    x = patches of x_t, linear, + fixed positions          c = MLP(features of t) + table[label],  s = SiLU(c)
    x += g1 Attn(RMSNorm(x) (1 + sc1) + sh1)               [sh1 sc1 g1 sh2 sc2 g2] = linear of s, for every block
    x += g2 MLP(RMSNorm(x) (1 + sc2) + sh2)                without shift: [sc1 g1 sc2 g2]
    v = linear(RMSNorm(x) (1 + scale) + shift)             [shift scale] = linear of s, always with shift

t = 1 is data and t = 0 noise. Works in float64, float32, and float32 under bf16 autocast; then the residual stream,
norms, modulation and rotation stay in float32. Labels are taken as they are: whoever trains replaces some by `classes`,
the row of no class.

Look next at check_lightningdit.py (this module beside the original), make_dit_fixtures.py and bench_dit.py.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

TIME_FEATURES = 256
SIZES = {  # depth, dim, heads, patch
    "B/1": (12, 768, 12, 1), "B/2": (12, 768, 12, 2), "L/2": (24, 1024, 16, 2), "XL/1": (28, 1152, 16, 1),
    "XL/2": (28, 1152, 16, 2), "1p0B/1": (24, 1536, 24, 1), "1p6B/1": (28, 1792, 28, 1),
}


# ---- Tables ----------------------------------------------------------------------------------------------------------

def position_table(grid, dim):
    """(1, T, dim): sin and cos of the column, then of the row; token i * grid + j is row i, column j."""
    quarter = dim // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, dim / 2)
    column = wave[None].expand(grid, -1, -1)
    row = wave[:, None].expand(-1, grid, -1)
    return torch.cat([column, row], dim=2).reshape(1, grid * grid, dim)


def rotation_angles(grid, head):
    """(T, head): the angle of each channel; pairs of neighbours share one. First half by row, second by column."""
    count = head // 4
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = (torch.arange(grid, dtype=torch.float64)[:, None] * frequency).repeat_interleave(2, dim=1)
    row = angle[:, None].expand(-1, grid, -1)
    column = angle[None].expand(grid, -1, -1)
    return torch.cat([row, column], dim=2).reshape(grid * grid, head)


def time_features(t):
    """(B, 256): cos and sin of t f_k, f_k = 10000^(-k / 128)."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float64, device=t.device))
    angle = t[:, None] * frequency.to(t.dtype)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


# ---- Parts -----------------------------------------------------------------------------------------------------------

def at_least_float(x):
    """Norms and rotations of bf16 numbers are computed in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = at_least_float(x)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class PlainLayerNorm(nn.Module):
    """DiT's: no weight, no bias."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return F.layer_norm(at_least_float(x), (self.width,), eps=1e-6)


class Rotation(nn.Module):
    """Neighbours (a, b) -> (a cos - b sin, b cos + a sin)."""

    def __init__(self, grid, head):
        super().__init__()
        angle = rotation_angles(grid, head)
        self.register_buffer("freqs_cos", angle.cos())
        self.register_buffer("freqs_sin", angle.sin())

    def forward(self, x):
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * self.freqs_cos + turned * self.freqs_sin


class Attention(nn.Module):
    def __init__(self, dim, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, rotate):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, NH, T, HS)
        if rotate is not None:
            q = rotate(at_least_float(self.q_norm(q))).to(v.dtype)
            k = rotate(at_least_float(self.k_norm(k))).to(v.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, dim):
        super().__init__()
        hidden = int(2 / 3 * (4 * dim))
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x):
        gated, linear = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gated) * linear)


class GeluMLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation(dim, chunks):
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, chunks * dim))


def modulate(x, shift, scale):
    x = x * (1 + at_least_float(scale)[:, None])
    return x if shift is None else x + shift[:, None]


class Block(nn.Module):
    def __init__(self, dim, heads, qk_norm, swiglu, shift, classic):
        super().__init__()
        norm = PlainLayerNorm if classic else RMSNorm
        self.norm1 = norm(dim)
        self.attn = Attention(dim, heads, qk_norm)
        self.norm2 = norm(dim)
        self.mlp = SwiGLU(dim) if swiglu else GeluMLP(dim)
        self.chunks = 6 if shift else 4
        self.adaLN_modulation = modulation(dim, self.chunks)

    def forward(self, x, c, rotate):
        m = self.adaLN_modulation(c).chunk(self.chunks, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = m if self.chunks == 6 else (None, *m[:2], None, *m[2:])
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), rotate)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, dim, outputs, classic):
        super().__init__()
        self.norm_final = PlainLayerNorm(dim) if classic else RMSNorm(dim)
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = modulation(dim, 2)

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbedding(nn.Module):
    def __init__(self, patch, channels, dim):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(time_features(t))


class LabelEmbedding(nn.Module):
    def __init__(self, classes, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, labels):
        return self.embedding_table(labels)


# ---- The model -------------------------------------------------------------------------------------------------------

class LightningDiT(nn.Module):
    """classic: DiT and SiT, LayerNorm without weight and no rotation. sigma: 2 channels of output for one of the latent."""

    def __init__(self, side, patch, channels, dim, depth, heads, classes=1000, qk_norm=False, swiglu=True, shift=True,
                 classic=False, sigma=False):
        super().__init__()
        self.patch, self.channels, self.classes, self.grid = patch, channels, classes, side // patch
        self.outputs = (2 if sigma else 1) * channels
        self.pos_embed = nn.Parameter(position_table(self.grid, dim).float(), requires_grad=False)
        self.x_embedder = PatchEmbedding(patch, channels, dim)
        self.t_embedder = TimeEmbedding(dim)
        self.y_embedder = LabelEmbedding(classes, dim)
        self.feat_rope = None if classic else Rotation(self.grid, dim // heads)
        self.blocks = nn.ModuleList([Block(dim, heads, qk_norm, swiglu, shift, classic) for _ in range(depth)])
        self.final_layer = FinalLayer(dim, patch * patch * self.outputs, classic)
        self.float()

    def forward(self, x, t, labels):
        """x (B, C, S, S), t (B), labels (B) in [0, classes] -> v (B, C, S, S), or (B, 2 C, S, S)."""
        c = self.t_embedder(t) + self.y_embedder(labels)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        return self.unpatchify(self.final_layer(x, c))

    def unpatchify(self, tokens):
        """Inside a token the order is row, column, channel."""
        g, p = self.grid, self.patch
        tokens = tokens.reshape(-1, g, g, p, p, self.outputs)
        return tokens.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.outputs, g * p, g * p)

    @torch.no_grad()
    def initialise(self):
        """Xavier for linear layers and patches, N(0, 0.02) for time and label, 0 for modulation, output and biases."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                nn.init.zeros_(module.bias)
        for weight in (self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight,
                       self.y_embedder.embedding_table.weight):
            nn.init.normal_(weight, std=0.02)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        return self

    def macs(self):
        """Multiply-accumulates of an image's forward pass, as LightningDiT's work is counted everywhere here."""
        T, D, L = self.grid ** 2, self.pos_embed.shape[-1], len(self.blocks)
        block = self.blocks[0]
        mlp = sum(m.weight.numel() for m in block.mlp.modules() if isinstance(m, nn.Linear))
        ends = T * D * (self.channels + self.outputs) * self.patch ** 2
        return (L * (T * (4 * D * D + mlp + 2 * T * D) + block.chunks * D * D) + ends + 2 * D * D
                + TIME_FEATURES * D + D * D)


def make_size(name, side=16, channels=32, **options):
    """A published size, such as XL/1."""
    depth, dim, heads, patch = SIZES[name]
    return LightningDiT(side, patch, channels, dim, depth, heads, **options)


# ---- Flow matching ---------------------------------------------------------------------------------------------------

def flow_loss(v, u):
    """(mean squared error, mean of 1 - cosine over the channels of a position). Training minimises the sum."""
    return F.mse_loss(v, u), (1 - F.cosine_similarity(v, u, dim=1)).mean()


def flow_pair(x1, x0, t):
    """x_t = t x1 + (1 - t) x0 and its velocity u = x1 - x0."""
    t = t[:, None, None, None]
    return t * x1 + (1 - t) * x0, x1 - x0


def time_grid(points, shift, dtype=torch.float64):
    """tau_i = i / (points - 1), then t = shift tau / (1 + (shift - 1) tau); shift <= 0: t = tau."""
    tau = torch.linspace(0, 1, points, dtype=dtype)
    return shift * tau / (1 + (shift - 1) * tau) if shift > 0 else tau


def guided_velocity(model, x, t, labels, weight=1.0, start=0.0, guided=3):
    """v_n + weight (v_c - v_n) in the first `guided` channels from t = start on; elsewhere v_c. t: one for all."""
    times = t * torch.ones(len(x), dtype=x.dtype, device=x.device)
    v = model(x, times, labels)
    if weight <= 1 or t < start:
        return v
    none = model(x, times, torch.full_like(labels, model.classes))
    mixed = none + weight * (v - none)
    return torch.cat([mixed[:, :guided], v[:, guided:]], dim=1)
