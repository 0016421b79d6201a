"""The networks of the tokenizer in PyTorch, for measuring its speed where neither taming-transformers nor lpips are
installed: the LDM decoder, the adapter, the PatchGAN and LPIPS on a VGG16. Parameters have the names of the public
checkpoints, so that load_state_dict takes theirs. The ViT is timm's.
"""
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---- Encoder and adapter ---------------------------------------------------------------------------------------------

def make_vit(patch=14, pos_grid=37, embed=1024, depth=24, heads=16):
    """A ViT as DINOv2 is: class token with a position, LayerScale, exact GELU."""
    return VisionTransformer(img_size=pos_grid * patch, patch_size=patch, embed_dim=embed, depth=depth,
                             num_heads=heads, init_values=1.0, num_classes=0, global_pool="", dynamic_img_size=True)


def encoder_input(image):
    """[-1, 1] images of side 16k -> side 14k, with ImageNet's mean and deviation."""
    size = (image.shape[2] // 16 * 14, image.shape[3] // 16 * 14)
    resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=False)
    mean, std = (torch.tensor(v, dtype=image.dtype, device=image.device).reshape(1, 3, 1, 1)
                 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (0.5 * resized + 0.5 - mean) / std


def encode(vit, pixels):
    """Tokens behind the final norm, without the class token."""
    return vit.forward_features(pixels)[:, vit.num_prefix_tokens:]


class Adapter(nn.Module):
    """Two linear layers with a GELU between them, on every token."""

    def __init__(self, width, hidden, out):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens):
        return self.fc2(F.gelu(self.fc1(tokens)))


# ---- Decoder ---------------------------------------------------------------------------------------------------------

def group_norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, channels, out, groups):
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = group_norm(out, groups)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """One head over all positions."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Decoder(nn.Module):
    """LDM's decoder with attention at its lowest resolution. `body` ends before conv_out, at whose weight the training
    recipe measures gradients."""

    def __init__(self, ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=32, groups=32):
        super().__init__()
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = ResBlock(channels, channels, groups)
        self.mid.attn_1 = AttnBlock(channels, groups)
        self.mid.block_2 = ResBlock(channels, channels, groups)
        levels = []
        for level in reversed(range(len(ch_mult))):
            out, part = ch * ch_mult[level], nn.Module()
            part.block = nn.ModuleList(ResBlock(out if i else channels, out, groups) for i in range(num_res_blocks + 1))
            lowest = level == len(ch_mult) - 1
            part.attn = nn.ModuleList(AttnBlock(out, groups) for _ in part.block if lowest)
            part.upsample = Upsample(out) if level else nn.Identity()
            levels.append(part)
            channels = out
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def body(self, z):
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for part in reversed(self.up):
            for i, block in enumerate(part.block):
                h = block(h)
                if part.attn:
                    h = part.attn[i](h)
            h = part.upsample(h)
        return F.silu(self.norm_out(h))

    def forward(self, z):
        return self.conv_out(self.body(z))


# ---- Judges ----------------------------------------------------------------------------------------------------------

class Discriminator(nn.Module):
    """PatchGAN: convolutions 4x4 with LeakyReLU, BatchNorm behind all but the first and the last."""

    def __init__(self, ndf=64, n_layers=3):
        super().__init__()
        layers = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = ndf
        for i in range(1, n_layers + 1):
            out = ndf * min(2**i, 8)
            layers += [nn.Conv2d(width, out, 4, 2 if i < n_layers else 1, 1, bias=False), nn.BatchNorm2d(out),
                       nn.LeakyReLU(0.2)]
            width = out
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, x):
        return self.main(x)


class LPIPS(nn.Module):
    """Perceptual distance on the slices of a VGG16: `channels` are those of the slices that there are. Frozen."""

    def __init__(self, channels=(64, 128, 256, 512, 512)):
        super().__init__()
        self.net, width, index = nn.Module(), 3, 0  # torchvision's numbers of the layers
        for i, (out, convs) in enumerate(zip(channels, (2, 2, 3, 3, 3))):
            layers = nn.Sequential()
            if i:
                layers.add_module(str(index), nn.MaxPool2d(2, 2))
                index += 1
            for _ in range(convs):
                layers.add_module(str(index), nn.Conv2d(width, out, 3, padding=1))
                layers.add_module(str(index + 1), nn.ReLU())
                width, index = out, index + 2
            setattr(self.net, f"slice{i + 1}", layers)
            head = nn.Module()
            head.model = nn.Sequential(nn.Dropout(), nn.Conv2d(out, 1, 1, bias=False))
            setattr(self, f"lin{i}", head)
        self.slices = len(channels)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, image):
        h, taps = (image - self.shift) / self.scale, []
        for i in range(self.slices):
            h = getattr(self.net, f"slice{i + 1}")(h)
            taps.append(h)
        return taps

    def forward(self, first, second):
        """One distance an image; the gradient goes to `second`."""
        with torch.no_grad():
            references = self.features(first)
        distance = 0
        for i, (f, g) in enumerate(zip(self.features(second), references)):
            u, v = (t / (t.square().sum(1, keepdim=True).sqrt() + 1e-10) for t in (f, g))
            distance = distance + getattr(self, f"lin{i}").model((u - v).square()).mean((1, 2, 3))
        return distance
