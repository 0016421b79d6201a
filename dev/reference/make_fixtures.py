"""Writes tests/fixtures/*.safetensors: what the PyTorch originals of our models answer, so that the C code can be
compared with them without Python.

    python dev/reference/make_fixtures.py             all files, and tests/fixtures/README.md
    python dev/reference/make_fixtures.py vit_mae     only this one

Every case is a function below that returns a Fixture; its name is the file's name and its docstring the file's
description in the README. All cases compute in float64 on one thread and store float32. Parameters and inputs are
exact in float32 and come from `uniform(name, count)`, a hash of name and index, so there is no generator state: a
case gives the same bytes alone or among others. No parameter is left at its initial value.

Small files store every parameter and every gradient. Larger ones leave parameters out (`generated`), because C can
compute the same hash, and the largest ones keep of a gradient of more than SAMPLE_ABOVE elements (`sampled`) only
every stride-th element, its norm, and its projection on a hashed vector, which depends on all of its elements.

Look next at fixture_file.py, the file's format, and at tests/fixtures/README.md for the layout. The originals, from the
packages in requirements.txt: timm models/vision_transformer.py and models/eva.py, taming
modules/diffusionmodules/model.py and modules/discriminator/model.py, lpips lpips.py.
"""
import contextlib
import functools
import importlib.metadata
import io
import math
import re
import warnings

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator
from timm.layers import LayerNorm, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fixture_file import DTYPE, Fixture, backward_from, fill, nhwc, parameter_gradients, run

VERSIONS = {name: importlib.metadata.version(name).split("+")[0]
            for name in ("torch", "torchvision", "timm", "lpips", "taming-transformers")}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---- Numbers ---------------------------------------------------------------------------------------------------------

def distribution(path, module, own_name, tensor, gain):
    """(base, amplitude) of the parameter or buffer `own_name` of the module at `path`, from what it is."""
    if own_name.startswith("gamma") or re.search(r"\blin\d\.model", path):  # LayerScale and LPIPS heads are positive
        return 0.5, 0.25
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) and own_name in ("weight", "running_var"):
        return 1.0, 0.25
    if own_name in ("cls_token", "reg_token", "pos_embed"):
        return 0.0, 0.5
    if tensor.dim() < 2:
        return 0.0, 0.25
    fan_in = tensor[0].numel()
    return 0.0, 2.0 ** round(math.log2(gain * math.sqrt(3.0 / fan_in)))


def randomise(model, gain=1.0):
    """Fills all parameters and the BatchNorm buffers of a model; returns {name: (base, amplitude)}."""
    rules = {}
    model.to(DTYPE)
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.BatchNorm2d):
            own |= {"running_mean": module.running_mean, "running_var": module.running_var}
        for own_name, tensor in own.items():
            name = f"{path}.{own_name}" if path else own_name
            rules[name] = distribution(path, module, own_name, tensor, gain)
            with torch.no_grad():
                tensor.copy_(fill(name, tensor.shape, *rules[name]))
    return rules


@contextlib.contextmanager
def keep_double():
    """timm's resample_abs_pos_embed casts to float32 by Tensor.float(); within this context that call does nothing."""
    original = torch.Tensor.float
    torch.Tensor.float = lambda self: self
    try:
        yield
    finally:
        torch.Tensor.float = original


@contextlib.contextmanager
def away_from_kinks(model, margins):
    """Collects in `margins` how close (Leaky)ReLU inputs come to zero and winners of max-pools to the runners-up,
    relative to the standard deviation. One unit on the other side of its kink moves a gradient by more than 1e-4, so
    the random inputs below were picked, of sixty, for a wide margin: float32 takes the same branches as float64."""
    def on_relu(module, inputs):
        t = inputs[0].detach()
        if inputs[0].requires_grad:
            margins.append(float(t.abs().min() / t.std()))

    def on_pool(module, inputs):
        t = inputs[0].detach()
        if inputs[0].requires_grad:
            windows = F.unfold(t.flatten(0, 1)[:, None], 2, stride=2).transpose(1, 2).flatten(0, 1)
            best = windows.topk(2).values
            margins.append(float((best[:, 0] - best[:, 1])[best[:, 0] > 0].min() / t.std()))

    hooks = [module.register_forward_pre_hook(on_pool if isinstance(module, nn.MaxPool2d) else on_relu)
             for module in model.modules() if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d))]
    yield
    for hook in hooks:
        hook.remove()


# ---- Vision transformers ---------------------------------------------------------------------------------------------

def make_vit(config):
    """timm's VisionTransformer with the options that its registered models have."""
    return VisionTransformer(
        img_size=config["pos_grid"] * config["patch"], patch_size=config["patch"], embed_dim=config["embed"],
        depth=config["depth"], num_heads=config["heads"], init_values=1.0 if config["layerscale"] else None,
        class_token=config["class_token"], reg_tokens=config["registers"], no_embed_class=not config["pos_prefix"],
        act_layer=nn.GELU if config["gelu"] == "exact" else functools.partial(nn.GELU, approximate="tanh"),
        num_classes=0, global_pool="", dynamic_img_size=True)


def make_dinov3(config):
    """timm's Eva with the options that its vit_*_patch16_dinov3 have."""
    return Eva(
        img_size=config["patch"], patch_size=config["patch"], embed_dim=config["embed"], depth=config["depth"],
        num_heads=config["heads"], init_values=1.0, num_reg_tokens=config["registers"], qkv_bias=False,
        use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
        norm_layer=functools.partial(LayerNorm, eps=config["eps"]), use_fc_norm=False, num_classes=0, global_pool="",
        dynamic_img_size=True)


def encode(vit, image):
    """Tokens after the final norm, without class and register tokens."""
    with keep_double():
        return vit.forward_features(image)[:, vit.num_prefix_tokens:]


def vit_case(height, width, generated=False, **options):
    config = dict(patch=14, pos_grid=5, embed=24, heads=3, depth=2, layerscale=True, gelu="exact", class_token=True,
                  registers=0, pos_prefix=True) | options
    eps = 1e-6 if config["pos_grid"] else 1e-5
    config |= dict(mlp=4 * config["embed"], eps=eps, height=height, width=width, batch=2)
    vit = make_vit(config) if config["pos_grid"] else make_dinov3(config)
    assert vit.norm.eps == config["eps"] and vit.blocks[0].mlp.fc1.out_features == config["mlp"]
    fixture = Fixture(model="vit", **config)
    fixture.parameters(vit, randomise(vit, gain=1.5), generated)
    image = fill("input.image", (2, 3, height, width), amplitude=2.0)
    fixture.image("input.image", image)
    backward_from(fixture, "tokens", encode(vit, image))
    fixture.gradients(parameter_gradients(vit), sampled=generated)
    return fixture


def vit_dinov2():
    """DINOv2: patch 14, class token with a position, LayerScale, exact GELU; position grid 5x5 used at 4x3. The input
    of the vit_* files is the encoder's own (resized and normalised) image, the output has no prefix tokens."""
    return vit_case(56, 42, depth=3)


def vit_dinov2_reg4():
    """DINOv2 with 4 registers: class token and registers have no position; position grid 5x5 used at 3x4."""
    return vit_case(42, 56, embed=16, heads=2, registers=4, pos_prefix=False)


def vit_mae():
    """MAE: patch 16, class token, no LayerScale; position grid 3x3 used at 4x5."""
    return vit_case(64, 80, embed=16, heads=2, patch=16, pos_grid=3, layerscale=False)


def vit_siglip2():
    """SigLIP 2: patch 16, no prefix tokens, no LayerScale, tanh GELU; position grid 3x3 as it is."""
    return vit_case(48, 48, embed=16, heads=2, patch=16, pos_grid=3, layerscale=False, gelu="tanh", class_token=False,
                    pos_prefix=False)


def vit_mini():
    """The miniature ViT: patch 7 at 28x28, width 96, 3 heads of 32; position grid 4x4 as it is."""
    return vit_case(28, 28, generated=True, patch=7, pos_grid=4, embed=96, heads=3)


def vit_head64():
    """DINOv2 with two heads of the full head size 64; position grid 7x7 used at 3x5."""
    return vit_case(42, 70, generated=True, pos_grid=7, embed=128, heads=2)


def vit_dinov3():
    """DINOv3: class token, 4 registers, rotary positions of 3x5 patches (timm computes their angles in float32), no
    bias of queries, keys and values."""
    return vit_case(24, 40, depth=3, patch=8, pos_grid=0, pos_prefix=False, registers=4)


def vit_dinov3_head64():
    """DINOv3 with two heads of the full head size 64, patch 16, 4x2 patches."""
    return vit_case(64, 32, generated=True, patch=16, pos_grid=0, pos_prefix=False, registers=4, embed=128, heads=2)


def positions():
    """Position tables resampled to another grid (bicubic, antialiased, timm layers/pos_embed.py), with gradient. Entry
    a_to_hxw: `prefix` rows that are copied (config), then axa rows."""
    fixture = Fixture(model="positions", prefix={})
    cases = ((37, 16, 16, 1, 4), (37, 24, 20, 0, 3), (14, 16, 16, 1, 5), (3, 4, 5, 0, 7))
    for grid, height, width, prefix, channels in cases:
        name = f"{grid}_to_{height}x{width}"
        fixture.config["prefix"][name] = prefix
        table = fill(f"positions.{name}", (1, prefix + grid * grid, channels)).requires_grad_()
        with keep_double():
            output = resample_abs_pos_embed(table, (height, width), (grid, grid), num_prefix_tokens=prefix)
        fixture.add(f"input.{name}", table)
        backward_from(fixture, name, output)
        fixture.add(f"dinput.{name}", table.grad)
    return fixture


def encoder_input(image, patch=14):
    """[-1, 1] images at side 16k -> the encoder's, at side patch k: resized, and resized + ImageNet normalisation."""
    size = (image.shape[2] // 16 * patch, image.shape[3] // 16 * patch)
    resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=False)
    mean, std = (torch.tensor(v, dtype=image.dtype).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return resized, (0.5 * resized + 0.5 - mean) / std


def resize():
    """An image's way into a patch-14 encoder: bilinear 16 -> 14 without antialiasing, then ImageNet mean and std."""
    fixture = Fixture(model="resize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for height, width in ((32, 48), (64, 16)):
        image = fill(f"resize.{height}x{width}", (2, 3, height, width))
        resized, normalised = encoder_input(image)
        fixture.image(f"input.{height}x{width}", image)
        fixture.image(f"output.resized_{height}x{width}", resized)
        fixture.image(f"output.normalised_{height}x{width}", normalised)
    return fixture


# ---- CNN decoder and encoder -----------------------------------------------------------------------------------------

def cnn_arguments(config):
    """Arguments of taming's Encoder and Decoder that put attention at the lowest resolution, whatever the image is."""
    levels = len(config["ch_mult"])
    return dict(ch=config["ch"], ch_mult=config["ch_mult"], num_res_blocks=config["num_res_blocks"],
                z_channels=config["z_channels"], in_channels=3, out_ch=3,
                attn_resolutions=[16], resolution=16 * 2 ** (levels - 1))


def make_decoder(config):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its latent shape
        return Decoder(**cnn_arguments(config))


def decoder_case(sampled=True, post_quant_conv=True, height=3, width=2, **config):
    model = nn.ModuleDict({"decoder": make_decoder(config)})
    if post_quant_conv:
        model["post_quant_conv"] = nn.Conv2d(config["z_channels"], config["z_channels"], 1)
    fixture = Fixture(model="decoder", post_quant_conv=post_quant_conv, height=height, width=width, batch=2, **config)
    fixture.parameters(model, randomise(model), generated=True)
    z = fill("input.z", (2, config["z_channels"], height, width), amplitude=2.0).requires_grad_()
    fixture.image("input.z", z)
    backward_from(fixture, "image", model["decoder"](model["post_quant_conv"](z) if post_quant_conv else z), nhwc)
    fixture.image("dinput.z", z.grad)
    fixture.gradients(parameter_gradients(model), sampled)
    return fixture


def encoder_case(height, width, **config):
    model = nn.ModuleDict({"encoder": Encoder(double_z=True, **cnn_arguments(config)),
                           "quant_conv": nn.Conv2d(2 * config["z_channels"], 2 * config["z_channels"], 1)})
    fixture = Fixture(model="encoder", quant_conv=True, height=height, width=width, batch=2, **config)
    fixture.parameters(model, randomise(model), generated=True)
    image = fill("input.image", (2, 3, height, width)).requires_grad_()
    fixture.image("input.image", image)
    backward_from(fixture, "moments", model["quant_conv"](model["encoder"](image)), nhwc)
    fixture.image("dinput.image", image.grad)
    fixture.gradients(parameter_gradients(model), sampled=True)
    return fixture


def decoder_small():
    """LDM decoder, two levels, 1 res block, one channel a group, behind post_quant_conv; complete gradients."""
    return decoder_case(sampled=False, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4)


def decoder_two_levels():
    """LDM decoder, two levels of 64 and 32 channels, 2 res blocks, without post_quant_conv."""
    return decoder_case(post_quant_conv=False, height=2, width=3, ch=32, ch_mult=(1, 2), num_res_blocks=2, z_channels=8)


def decoder_five_levels():
    """LDM decoder with the topology of the f16 decoder (194 tensors) at a quarter of its width."""
    return decoder_case(ch=32, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=8)


def encoder_two_levels():
    """LDM encoder, two levels of 32 and 64 channels, 1 res block, with quant_conv; moments = mean, log variance."""
    return encoder_case(6, 10, ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4)


def encoder_five_levels():
    """LDM encoder with the topology of the f16 encoder (144 tensors) at a quarter of its width, with quant_conv."""
    return encoder_case(32, 48, ch=32, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, z_channels=8)


# ---- Discriminator and LPIPS -----------------------------------------------------------------------------------------

def add_running_statistics(fixture, model):
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            fixture.add(f"after.{name}", buffer)


def patchgan(seed=31):
    """PatchGAN discriminator in training mode: logits, gradients, and the running statistics after this one call."""
    model = NLayerDiscriminator(ndf=8, n_layers=3)
    fixture = Fixture(model="patchgan", ndf=8, n_layers=3, height=40, width=48, batch=3)
    fixture.parameters(model, randomise(model, gain=1.5), generated=True)
    image = fill(f"patchgan.image.{seed}", (3, 3, 40, 48)).requires_grad_()
    fixture.image("input.image", image)
    with away_from_kinks(model, fixture.margins):
        logits = model(image.clone())
    backward_from(fixture, "logits", logits, nhwc)
    fixture.image("dinput.image", image.grad)
    fixture.gradients(parameter_gradients(model))
    add_running_statistics(fixture, model)
    return fixture


def discriminator_loss(real, fake):
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def patchgan_hinge(seed=34):
    """One adversarial step of the PatchGAN: loss_g = -mean D(fake) with its gradient at the fake images (dinput.fake),
    then loss_d, the hinge loss, with its parameter gradients. Calls in the order fake, real, fake, each with its own
    batch statistics; after.* are the running statistics behind the third."""
    model = NLayerDiscriminator(ndf=8, n_layers=3)
    fixture = Fixture(model="patchgan_hinge", ndf=8, n_layers=3, height=32, width=40, batch=2)
    fixture.parameters(model, randomise(model, gain=3.0), generated=True)
    real = fill(f"patchgan_hinge.real.{seed}", (2, 3, 32, 40))
    fake = fill(f"patchgan_hinge.fake.{seed}", (2, 3, 32, 40)).requires_grad_()
    with away_from_kinks(model, fixture.margins):
        loss_g = -model(fake.clone()).mean()
        loss_g.backward()
        model.zero_grad()
        logits_real, logits_fake = model(real), model(fake.detach())
    loss_d = discriminator_loss(logits_real, logits_fake)
    loss_d.backward()
    fixture.image("input.real", real)
    fixture.image("input.fake", fake)
    fixture.image("output.logits_real", logits_real)
    fixture.image("output.logits_fake", logits_fake)
    fixture.add("output.loss_g", loss_g)
    fixture.add("output.loss_d", loss_d)
    fixture.image("dinput.fake", fake.grad)
    fixture.gradients(parameter_gradients(model), sampled=True)
    add_running_statistics(fixture, model)
    return fixture


def make_lpips(base_channels):
    """The package's VGG-LPIPS with `base_channels` instead of 64 in the first slice, all others in proportion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecates the argument by which lpips asks for no weights
        model = lpips.LPIPS(pretrained=False, net="vgg", lpips=True, pnet_rand=True, verbose=False)
    narrow = lambda channels: channels if channels == 3 else channels * base_channels // 64
    for slice_index in range(1, 6):
        layers = getattr(model.net, f"slice{slice_index}")
        for index, layer in layers.named_children():
            if isinstance(layer, nn.Conv2d):
                setattr(layers, index, nn.Conv2d(narrow(layer.in_channels), narrow(layer.out_channels), 3, padding=1))
    for k, channels in enumerate(model.chns):
        setattr(model, f"lin{k}", lpips.lpips.NetLinLayer(narrow(channels), use_dropout=True))
    model.lins = nn.ModuleList(getattr(model, f"lin{k}") for k in range(model.L))
    return model.eval().requires_grad_(False)


def lpips_narrow(seed=19):
    """LPIPS on a VGG16 of 1/16 width (4, 8, 16, 32, 32 channels), evaluation mode: one distance an image, and the
    gradient with respect to the first image."""
    model = make_lpips(4)
    fixture = Fixture(model="lpips", base_channels=4, height=32, width=48, batch=2)
    fixture.parameters(model, randomise(model, gain=1.5))
    first = fill(f"lpips.first.{seed}", (2, 3, 32, 48)).requires_grad_()
    second = fill("lpips.second", (2, 3, 32, 48))
    fixture.image("input.first", first)
    fixture.image("input.second", second)
    with away_from_kinks(model, fixture.margins):
        distance = model(first, second)
    backward_from(fixture, "distance", distance.flatten())
    fixture.image("dinput.first", first.grad)
    return fixture


# ---- Losses ----------------------------------------------------------------------------------------------------------

def vf_loss(z, feature, distmat_margin, cos_margin):
    """Both parts of VA-VAE's vision-foundation loss (LightningDiT, contperceptual.py) for maps (B, C, H, W)."""
    similarity = lambda t: torch.einsum("bci,bcj->bij", *[F.normalize(t.flatten(2), dim=1)] * 2)
    distance = F.relu((similarity(z) - similarity(feature)).abs() - distmat_margin).mean()
    cosine = F.relu(1 - cos_margin - F.cosine_similarity(feature, z)).mean()
    return distance, cosine


def loss_vf():
    """VA-VAE's VF loss with margins 0.25 and 0.5: the parts distmat and cos, and gradients of their sum."""
    fixture = Fixture(model="loss_vf", distmat_margin=0.25, cos_margin=0.5)
    projection = nn.Conv2d(8, 24, 1, bias=False)
    names = nn.ModuleDict({"linear_proj": projection})
    fixture.parameters(names, randomise(names))
    z = fill("loss_vf.z", (2, 8, 3, 4)).requires_grad_()
    projected = projection(z)
    noise = fill("loss_vf.feature", projected.shape)
    mix = torch.linspace(0, 1, 12, dtype=DTYPE).reshape(1, 1, 3, 4)  # from unrelated to nearly parallel features
    feature = (mix * projected.detach() + (1 - mix) * noise).float().to(DTYPE)
    distance, cosine = vf_loss(projected, feature, 0.25, 0.5)
    (distance + cosine).backward()
    fixture.image("input.z", z)
    fixture.image("input.feature", feature)
    fixture.add("output.distmat", distance)
    fixture.add("output.cos", cosine)
    fixture.image("dinput.z", z.grad)
    fixture.gradients(parameter_gradients(names))
    return fixture


def loss_kl():
    """KL divergence and the reparameterised sample: moments = mean, log variance (clamped to [-30, 20]); kl is summed
    over an image and averaged over the batch. Gradients at the moments: of kl, and of sum(z * dout.z). In the tensors
    *_clamped two pixels lie beyond the clamps."""
    fixture = Fixture(model="loss_kl")
    for suffix in ("", "_clamped"):
        moments = fill("loss_kl.moments", (2, 8, 3, 5), amplitude=2.0)
        noise = fill("loss_kl.noise", (2, 4, 3, 5), amplitude=2.0)
        if suffix:
            moments[:, 4:, 0, 0], moments[:, 4:, 1, 1] = -31.0, 20.5
            noise[:, :, 1, 1] *= 2.0**-14  # the standard deviation is 2^14 there
        moments.requires_grad_()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        z = mean + (0.5 * log_variance).exp() * noise
        kl = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).sum() / 2
        fixture.image(f"input.moments{suffix}", moments)
        fixture.image(f"input.noise{suffix}", noise)
        fixture.add(f"output.kl{suffix}", kl)
        fixture.image(f"dinput.moments_kl{suffix}", torch.autograd.grad(kl, moments, retain_graph=True)[0])
        backward_from(fixture, f"z{suffix}", z, nhwc)
        fixture.image(f"dinput.moments_sample{suffix}", moments.grad)
    return fixture


def loss_semantic():
    """Semantic losses between latents z and z0: l2 = mean squared difference, cosine = mean over tokens of 1 - cos."""
    fixture = Fixture(model="loss_semantic")
    z = fill("loss_semantic.z", (2, 12, 7), amplitude=2.0).requires_grad_()
    z0 = fill("loss_semantic.z0", (2, 12, 7), amplitude=2.0)
    fixture.add("input.z", z)
    fixture.add("input.z0", z0)
    for name, loss in (("l2", F.mse_loss(z, z0)), ("cosine", (1 - F.cosine_similarity(z, z0, dim=-1)).mean())):
        fixture.add(f"output.{name}", loss)
        fixture.add(f"dinput.z_{name}", torch.autograd.grad(loss, z)[0])
    return fixture


def loss_l1():
    """Sum of absolute differences of an image, averaged over the batch; some pixels are equal: gradient zero."""
    fixture = Fixture(model="loss_l1")
    reconstruction = fill("loss_l1.reconstruction", (2, 3, 5, 7))
    target = fill("loss_l1.target", (2, 3, 5, 7))
    target[0, :, 2, :3] = reconstruction[0, :, 2, :3]
    reconstruction.requires_grad_()
    loss = (target - reconstruction).abs().sum() / 2
    loss.backward()
    fixture.image("input.reconstruction", reconstruction)
    fixture.image("input.target", target)
    fixture.add("output.l1", loss)
    fixture.image("dinput.reconstruction", reconstruction.grad)
    return fixture


# ---- A whole step of stage 2 -----------------------------------------------------------------------------------------

STAGE2_VIT = dict(patch=7, pos_grid=4, embed=24, heads=3, depth=2, layerscale=True, gelu="exact", class_token=True,
                  registers=0, pos_prefix=True)
STAGE2_DECODER = dict(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=8)


class Adapter(nn.Module):
    """Tokens to latent: a two-layer MLP with exact GELU."""

    def __init__(self, embed, hidden, channels):
        super().__init__()
        self.fc1 = nn.Linear(embed, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens):
        return self.fc2(F.gelu(self.fc1(tokens)))


def adaptive_weight(numerator, denominator, tensor, weight, clip):
    """weight * clip(|d numerator / d tensor| / (|d denominator / d tensor| + 1e-4)), a constant; and the two norms."""
    norms = [torch.autograd.grad(loss, tensor, retain_graph=True)[0].norm() for loss in (numerator, denominator)]
    return weight * torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, clip), norms


def stage2_forward(model, image):
    """Everything of one chunk before the weights: latents, reconstruction and the losses of the generator."""
    tokens = encode(model["vit"], encoder_input(image)[1])
    z = model["adapter"](tokens)
    z0 = model["previous"]["adapter"](tokens.detach())
    batch, _, height, width = image.shape
    reconstruction = model["decoder"](z.transpose(1, 2).reshape(batch, -1, height // 8, width // 8))
    distance = model["lpips"](image, reconstruction)
    l1 = (image - reconstruction).abs()
    logits = model["discriminator"](reconstruction.clone())
    return dict(z=z, z0=z0, image=reconstruction, lpips=distance.flatten(), l1=l1.sum() / batch,
                nll=(l1 + distance).sum() / batch, loss_g=-logits.mean(), loss_sem=F.mse_loss(z, z0.detach()))


def stage2_chunk(model, image, chunks):
    """Adds the gradients of one chunk, divided by the number of chunks; returns what goes into the file."""
    out = stage2_forward(model, image)
    nll, loss_g, loss_sem = out["nll"], out["loss_g"], out["loss_sem"]
    conv_out, fc2, vit_fc2 = model["decoder"].conv_out, model["adapter"].fc2, model["vit"].blocks[-1].mlp.fc2
    omega_g, (out["norm_nll_g"], out["norm_g"]) = adaptive_weight(nll, loss_g, conv_out.weight, 0.5, 1e4)
    omega_s, (out["norm_nll_s"], out["norm_s"]) = adaptive_weight(nll, loss_sem, fc2.weight, 1.0, 1e8)
    omega_s_vit, _ = adaptive_weight(nll, loss_sem, vit_fc2.weight, 1.0, 1e8)
    generator = [p for part in ("vit", "adapter", "decoder") for p in model[part].parameters()]
    ((nll + omega_g * loss_g + omega_s * loss_sem) / chunks).backward(inputs=generator)
    real, fake = model["discriminator"](image), model["discriminator"](out["image"].detach())
    out |= dict(omega_g=omega_g, omega_s=omega_s, omega_s_vit=omega_s_vit, logits_real=real, logits_fake=fake)
    out["loss_d"] = discriminator_loss(real, fake)
    (out["loss_d"] / chunks).backward(inputs=list(model["discriminator"].parameters()))
    return out


def stage2_step(seed=27):
    """A whole training step of stage 2: two chunks of 2 images through ViT, adapter, decoder, LPIPS and
    discriminator, each chunk with its own BatchNorm statistics and adaptive weights. Patches of 7 at 7/8 of the image's
    side, so the decoder scales by 8. z0 comes from the same ViT and the adapter previous.adapter.*. Loss of a chunk:
    nll + omega_g loss_g + omega_s loss_sem with nll = l1 + 3 H W mean(lpips); loss_d is the discriminator's. Gradients
    are averages over the chunks: of the former for vit, adapter and decoder, of loss_d for the discriminator. norm_*:
    the gradient norms behind omega_g (nll and loss_g at decoder.conv_out.weight) and omega_s (nll and loss_sem at
    adapter.fc2.weight); omega_s_vit is omega_s taken at the last block's mlp.fc2.weight instead, and not used. after.*:
    running statistics after chunk 0 alone, calls in the order fake, real, fake. Scalars have one entry a chunk.
    Names: vit.*, adapter.*, decoder.*, discriminator.main.*, lpips.net.*, lpips.lin*.*, previous.adapter.*."""
    fixture = Fixture(model="stage2_step", height=32, width=48, batch=4, chunk=2, adapter_hidden=16, ndf=8, n_layers=3,
                      lpips_base_channels=4, w_g=0.5, w_sp=1.0, vit=STAGE2_VIT, decoder=STAGE2_DECODER)
    channels = STAGE2_DECODER["z_channels"]
    model = nn.ModuleDict({
        "vit": make_vit(STAGE2_VIT), "adapter": Adapter(24, 16, channels), "decoder": make_decoder(STAGE2_DECODER),
        "lpips": make_lpips(4), "discriminator": NLayerDiscriminator(ndf=8, n_layers=3),
        "previous": nn.ModuleDict({"adapter": Adapter(24, 16, channels)})})
    fixture.parameters(model, randomise(model), generated=True)
    image = fill(f"stage2_step.image.{seed}", (4, 3, 32, 48))
    fixture.image("input.image", image)
    outputs = []
    with away_from_kinks(model, fixture.margins):
        for chunk in image.split(2):
            outputs.append(stage2_chunk(model, chunk, chunks=2))
            fixture.margins.append(float((chunk - outputs[-1]["image"].detach()).abs().min()))
            if len(outputs) == 1:
                add_running_statistics(fixture, model)
    for name in outputs[0]:
        parts = [out[name].detach() for out in outputs]
        joined = torch.stack(parts) if parts[0].dim() == 0 else torch.cat(parts)
        fixture.add(f"output.{name}", nhwc(joined) if joined.dim() == 4 else joined)
    fixture.gradients(parameter_gradients(model), sampled=True)
    return fixture


# ---- Optimisers ------------------------------------------------------------------------------------------------------

def optimizers():
    """Five steps of Adam and of AdamW on one vector with given gradients, some of them tiny and some zero: the vector
    after each step."""
    steps, count, rate = 5, 257, 0.0625
    settings = dict(adam=dict(betas=(0.5, 0.9), eps=1e-8), adamw=dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5))
    fixture = Fixture(model="optimizers", lr=rate, **settings)
    start = fill("optimizers.parameters", (count,))
    gradients = fill("optimizers.gradients", (steps, count))
    gradients[:, :32] *= 2.0**-20
    gradients[:, 32:40] = 0.0
    fixture.add("input.parameters", start)
    fixture.add("input.gradients", gradients)
    for name, optimizer_class in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        parameters = start.clone().requires_grad_()
        optimizer = optimizer_class([parameters], lr=rate, **settings[name])
        history = []
        for gradient in gradients:
            parameters.grad = gradient.clone()
            optimizer.step()
            history.append(parameters.detach().clone())
        fixture.add(f"output.{name}", torch.stack(history))
    return fixture


def ema_exponent(width):
    """The exponent gamma of a power-function average of relative width `width` (Karras et al. 2024, equation 126)."""
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(roots.real.max())


def ema():
    """Power-function moving averages of widths 0.05 and 0.10 over five values of a vector: from step 1 on, and from
    step 1001 on with input.start as the average so far. beta_t = (1 - 1/t)^(gamma + 1)."""
    steps, count = 5, 131
    gamma = {f"{width:.2f}": ema_exponent(width) for width in (0.05, 0.10)}
    fixture = Fixture(model="ema", gamma=gamma, late_step=1001)
    values = fill("ema.values", (steps, count))
    start = fill("ema.start", (count,))
    fixture.add("input.values", values)
    fixture.add("input.start", start)
    for width, exponent in gamma.items():
        for name, first in (("early", 1), ("late", 1001)):
            average, history = start.clone(), []
            for t, value in enumerate(values, start=first):
                beta = (1 - 1 / t) ** (exponent + 1)
                average = beta * average + (1 - beta) * value
                history.append(average)
            fixture.add(f"output.{name}_{width}", torch.stack(history))
    return fixture


# ---- Main ------------------------------------------------------------------------------------------------------------

CASES = (vit_dinov2, vit_dinov2_reg4, vit_mae, vit_siglip2, vit_mini, vit_head64, vit_dinov3, vit_dinov3_head64,
         positions, resize,
         decoder_small, decoder_two_levels, decoder_five_levels, encoder_two_levels, encoder_five_levels,
         patchgan, patchgan_hinge, lpips_narrow, loss_vf, loss_kl, loss_semantic, loss_l1, stage2_step, optimizers, ema)

README = """# Fixtures

What the PyTorch originals answer to given parameters and inputs, for the C tests to compare with. All files
and this page were made by

    pip install -r dev/reference/requirements.txt
    python dev/reference/make_fixtures.py
    python dev/reference/make_dit_fixtures.py     # dit_*, sampler
    python dev/reference/make_gigatok_fixture.py GIGATOK     # decoder_large, from a checkout of GigaTok (182920c)
    python dev/reference/make_variation_fixtures.py          # vit_lora, stage2_tokens
    python dev/reference/make_drawing_fixture.py DIT SIT     # drawing, published_dit.pt, from checkouts of DiT (ed81ce2) and SiT (947f95b)

({versions};
vit_dinov3*, dit_*, sampler, drawing and decoder_large: torch 2.15.0, torchdiffeq 0.2.5; vit_lora and stage2_tokens: torch
2.15.0, peft 0.21.2). The scripts compute in float64; run twice on one machine they give the same bytes.

## Layout of a file
safetensors, F32. Metadata: `config`, a JSON object (`model`, sizes, options), and `versions`. Parameters have the
public checkpoints' names, shapes and order (convolutions OIHW); images and maps are NHWC, token sequences (B, T, C).
Only the latents of dit_*, sampler and drawing are NCHW, as they are in LightningDiT's files.

| tensor | what it is |
|---|---|
| `input.<x>`, `output.<y>` | inputs and outputs |
| `dout.<y>` | upstream gradient; gradients are those of sum(output * dout), or of the loss that the file is about |
| `dinput.<x>` | gradient of an input |
| `param.<name>` | parameter or BatchNorm buffer |
| `generate.<name>` | [base, amplitude, count] of a parameter that is not stored, see below |
| `grad.<name>` | gradient of a parameter, complete |
| `gradsample.<name>` | of a large gradient: elements 0, stride, 2 stride, ... in the public order |
| `gradcheck.<name>` | of the same gradient: [stride, norm, projection] |
| `after.<name>` | running mean or variance after the call, or parameter after the last step |
| `ema.<name>` | moving average of a parameter after the last step |

Names in `zero_gradients` of the configuration have no gradient tensor: theirs is zero by the mathematics (the bias of
an attention's keys, or a bias in front of a norm with one channel a group), so only its size against the others can be
tested.

Element i, in the public order, of a generated parameter is `base + amplitude * uniform(name, i)`, and the projection
of a gradient is `sum_i grad[i] * uniform("grad." + name, i)`, with

    float uniform(const char* name, uint32_t i) {{ // in [-1, 1)
        uint32_t u = 2166136261u;
        for (; *name; name++) u = (u ^ (uint8_t)*name) * 16777619u;
        u += i * 2654435761u;
        u = (u ^ (u >> 16)) * 0x45D9F3Bu;
        u = (u ^ (u >> 16)) * 0x45D9F3Bu;
        u ^= u >> 16;
        return (float)(u >> 8) / 8388608.0f - 1.0f;
    }}

uniform("conv_in.weight", 0..2) = {example}. Stored parameters follow the same formula.

## Files
"""


if __name__ == "__main__":
    run(__doc__, CASES, VERSIONS, README)
