"""Writes files in the layouts in which others publish weights, and what the originals answer with these weights.

    git clone https://github.com/hustvl/LightningDiT
    python dev/reference/make_published_formats.py LightningDiT                     tests/fixtures/published*
    python dev/reference/make_published_formats.py LightningDiT --full FOLDER       the same at full size
    make build/cpu/check_published_formats && build/cpu/check_published_formats FOLDER

Nothing is downloaded: the values are hashes of the tensors' names, and the files are like the published ones in keys,
nesting, order, types, what else they hold, and container (torch.save). The modules are the originals: VA-VAE's
autoencoder and LightningDiT from the checkout, ViTs from timm, whose names facebook's files share but for what is added
here. The narrow files have a few channels instead of hundreds; their answers are computed in float64. At full size
(XL/1: 2.7 GB, VA-VAE with the state of its training: 2.1 GB, ViT-L: 1.2 GB each) they are computed in float32.

Needs timm, einops, and what the checkout imports (requests, tqdm, torchvision).
"""
import argparse
import collections
import functools
import importlib.metadata
import math
import pathlib
import sys

import timm
import torch

from check_lightningdit import import_original
from fixture_file import REPOSITORY, Fixture, describe, fill, nhwc, write_page

VERSIONS = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "timm")}
PAGE = REPOSITORY / "tests" / "fixtures" / "README.md"


# ---- Values ----------------------------------------------------------------------------------------------------------

def value(name, shape):
    """float32. A matrix keeps its input's size; norms and LayerScale lie around 1."""
    if len(shape) <= 1:
        around_one = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        return fill(name, shape, 1.0 if around_one else 0.0, 0.25).float()
    if any(part in name for part in ("token", "pos_embed", "embedding_table")):
        return fill(name, shape).float()
    return fill(name, shape, 0.0, 2.0 ** round(math.log2(math.sqrt(3.0 / math.prod(shape[1:]))))).float()


@torch.no_grad()
def randomise(model, prefix=""):
    """Every trained parameter; tables that the original computes stay."""
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            tensor.copy_(value(prefix + name, tensor.shape))
    return model


def state(model):
    return collections.OrderedDict((name, tensor.float().clone()) for name, tensor in model.state_dict().items())


def save(path, content):
    torch.save(content, path)
    print(f"{path.name:34} {path.stat().st_size:13,} bytes")


# ---- VA-VAE ----------------------------------------------------------------------------------------------------------

VGG_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_PLACES = (("1", 0), ("1", 2), ("2", 5), ("2", 7), ("3", 10), ("3", 12), ("3", 14), ("4", 17), ("4", 19), ("4", 21),
              ("5", 24), ("5", 26), ("5", 28))


def make_autoencoder(checkout, z, ch, size):
    """The original AutoencoderKL. Below 32 channels its GroupNorms get as many groups as 32 and `ch` share."""
    sys.path.insert(0, str(checkout))
    from tokenizer import autoencoder as original
    groups = math.gcd(32, ch)
    original.Normalize = lambda channels: torch.nn.GroupNorm(groups, channels, eps=1e-6, affine=True)
    for side in ("Encoder", "Decoder"):
        setattr(original, side, functools.partial(getattr(original, side), ch=ch, resolution=256))
    return randomise(original.AutoencoderKL(embed_dim=z, ch_mult=(1, 1, 2, 2, 4)), "vavae.").eval()


def loss_shapes(base):
    """The perceptual loss and the discriminator within the training's loss, at base / 64 of their width."""
    shapes = {"loss.logvar": (), "loss.perceptual_loss.scaling_layer.shift": (1, 3, 1, 1),
              "loss.perceptual_loss.scaling_layer.scale": (1, 3, 1, 1)}
    channels = [3] + [c * base // 64 for c in VGG_CHANNELS]
    for i, (part, number) in enumerate(VGG_PLACES):
        shapes[f"loss.perceptual_loss.net.slice{part}.{number}.weight"] = (channels[i + 1], channels[i], 3, 3)
        shapes[f"loss.perceptual_loss.net.slice{part}.{number}.bias"] = (channels[i + 1],)
    for i, c in enumerate((64, 128, 256, 512, 512)):
        shapes[f"loss.perceptual_loss.lin{i}.model.1.weight"] = (1, c * base // 64, 1, 1)
    c = base
    shapes |= {"loss.discriminator.main.0.weight": (c, 3, 4, 4), "loss.discriminator.main.0.bias": (c,)}
    for i in (2, 5, 8):
        shapes[f"loss.discriminator.main.{i}.weight"] = (2 * c, c, 4, 4)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            shapes[f"loss.discriminator.main.{i + 1}.{name}"] = () if name == "num_batches_tracked" else (2 * c,)
        c *= 2
    return shapes | {"loss.discriminator.main.11.weight": (1, c, 4, 4), "loss.discriminator.main.11.bias": (1,)}


def tensor(name, shape):
    return torch.tensor(50000) if name.endswith("num_batches_tracked") else value(name, shape)


def adam_state(parameters):
    """An optimiser's state as torch.optim.Adam gives it."""
    moments = {i: {"step": torch.tensor(50000.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
               for i, p in enumerate(parameters)}
    group = {"lr": 1e-4, "betas": (0.5, 0.9), "eps": 1e-08, "weight_decay": 0, "amsgrad": False, "maximize": False,
             "foreach": None, "capturable": False, "differentiable": False, "fused": None,
             "params": list(range(len(parameters)))}
    return {"state": moments, "param_groups": [group]}


def training_checkpoint(weights, optimised):
    """What PyTorch Lightning 2.4 puts around the weights."""
    score = torch.tensor(0.25)
    callback = {"monitor": "val/rec_loss", "best_model_score": score, "best_model_path": "epoch=000049.ckpt",
                "current_score": score, "dirpath": "logs", "best_k_models": {"epoch=000049.ckpt": score},
                "kth_best_model_path": "", "kth_value": score, "last_model_path": ""}
    progress = {"total": {"ready": 50, "completed": 50}, "current": {"ready": 50, "completed": 50}}
    return {"epoch": 50, "global_step": 500400, "pytorch-lightning_version": "2.4.0", "state_dict": weights,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": progress}}, "lr_schedulers": [],
            "callbacks": {"ModelCheckpoint{'monitor': 'val/rec_loss', 'mode': 'min', 'save_last': True}": callback},
            "optimizer_states": [adam_state(parameters) for parameters in optimised]}


def vavae(checkout, folder, narrow):
    """The file, and the answers: mean and deviation of an image's latent, the reconstruction of the mean."""
    z, ch, size, batch = (2, 4, 48, 2) if narrow else (32, 128, 256, 1)
    model = make_autoencoder(checkout, z, ch, size)
    weights = state(model)
    losses = {name: tensor(name, shape) for name, shape in loss_shapes(2 if narrow else 64).items()
              if not narrow or "slice" not in name or "slice1" in name}
    weights |= losses
    optimised = [p for name, p in weights.items() if not name.startswith("loss.")]
    vit = timm.create_model("vit_large_patch14_dinov2.lvd142m" if not narrow else "vit_tiny_patch16_224",
                            pretrained=False, num_classes=0)
    for name, t in list(vit.state_dict().items())[:4 if narrow else None]:
        shape = [min(n, 4) for n in t.shape] if narrow else t.shape
        weights[f"foundation_model.model.{name}"] = value(f"foundation_model.model.{name}", shape)
    weights["linear_proj.weight"] = value("linear_proj.weight", (8 if narrow else 1024, z, 1, 1))
    optimised.append(weights["linear_proj.weight"])
    discriminator = [p for name, p in losses.items() if "main" in name and "running" not in name and p.dim()]
    if narrow:
        optimised, discriminator = optimised[:1], discriminator[:1]
    name = "published_vavae.pt" if narrow else "vavae-imagenet256-f16d32-dinov2.pt"
    save(folder / name, training_checkpoint(weights, (optimised, discriminator)))
    # bytes as an image loader gives them
    pixels = ((fill("vavae.image", (batch, 3, size, size)) + 1) * 127.5).round()
    dtype = torch.float64 if narrow else torch.float32
    model = model.to(dtype)
    with torch.no_grad():
        posterior = model.encode((pixels / 127.5 - 1).to(dtype))
        image = model.decode(posterior.mode())
    return dict(pixels=pixels, mean=posterior.mean, std=posterior.std, image=image)


# ---- LightningDiT ----------------------------------------------------------------------------------------------------

def lightningdit(checkout, folder, narrow):
    """{"ema": ...}, as the published ones; the narrow one has QK-norm."""
    original, _ = import_original(checkout)
    config = dict(side=3, patch=1, z=2, dim=40, depth=2, heads=2, classes=7) if narrow else \
        dict(side=16, patch=1, z=32, dim=1152, depth=28, heads=16, classes=1000)
    model = original.LightningDiT(
        input_size=config["side"], patch_size=config["patch"], in_channels=config["z"], hidden_size=config["dim"],
        depth=config["depth"], num_heads=config["heads"], num_classes=config["classes"], use_qknorm=narrow,
        use_swiglu=True, use_rope=True, use_rmsnorm=True)
    randomise(model, "dit.").eval()
    save(folder / ("published_lightningdit.pt" if narrow else "lightningdit-xl-imagenet256-800ep.pt"),
         {"ema": state(model)})
    mean, std = (fill(f"dit.{name}", (1, config["z"], 1, 1), base).float() for name, base in (("mean", 0), ("std", 2)))
    save(folder / ("published_latents_stats.pt" if narrow else "latents_stats.pt"), {"mean": mean, "std": std})
    x = fill("dit.x", (2, config["z"], config["side"], config["side"]), amplitude=2.0).float()
    labels = torch.tensor([3, config["classes"]])
    with torch.no_grad():
        v = model(x, torch.tensor([0.25, 0.875]), labels)
    return dict(x=x, t=torch.tensor([0.25, 0.875]), labels=labels, v=v)


# ---- ViTs ------------------------------------------------------------------------------------------------------------

def vit(folder, narrow, kind):
    """facebook's file of a ViT, and the tokens that timm gives for an image of the model's own size."""
    small = dict(img_size=21, patch_size=7, embed_dim=24, depth=2, num_heads=3, mlp_ratio=56 / 24) if narrow else {}
    if kind == "mae":
        model = timm.create_model("vit_large_patch16_224.mae", pretrained=False, num_classes=0, **small)
        size, name = 224, "mae_pretrain_vit_large.pth"
    else:
        registers = kind == "dinov2_reg"
        model = timm.create_model(f"vit_large_patch14_{'reg4_' if registers else ''}dinov2.lvd142m", pretrained=False,
                                  num_classes=0, **(small or dict(img_size=518)))
        size, name = 518, f"dinov2_vitl14_{'reg4_' if registers else ''}pretrain.pth"
    randomise(model, f"{kind}.").eval()
    weights = state(model)
    dim = weights["cls_token"].shape[-1]
    if kind != "mae":
        weights["mask_token"] = value(f"{kind}.mask_token", (1, dim))
        weights.move_to_end("mask_token", last=False)
    if kind == "dinov2_reg":  # facebook's keeps a position for the class token, which timm has added to it
        weights["register_tokens"] = weights.pop("reg_token")
        row = value(f"{kind}.class_position", (1, 1, dim))
        weights["pos_embed"] = torch.cat([row, weights["pos_embed"]], 1)
        with torch.no_grad():
            model.cls_token += row
    save(folder / (f"published_{kind}.pth" if narrow else name), {"model": weights} if kind == "mae" else weights)
    size = 21 if narrow else size
    pixels = ((fill(f"{kind}.image", (1, 3, size, size)) + 1) * 127.5).round()
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        tokens = model.double().forward_features(((pixels / 255 - mean) / std).double())
    return dict(pixels=pixels, tokens=tokens[:, -model.patch_embed.num_patches:])


# ---- Files of answers ------------------------------------------------------------------------------------------------

def published(checkout, folder, narrow, kinds):
    """Answers of the originals to the files published_*.pt and .pth beside this one, which are in the published layouts
    with hashed values: VA-VAE (4 to 16 channels; vavae.*: pixels 0 to 255, mean and std of the latent, reconstruction
    of the mean), LightningDiT (size tiny/1 with QK-norm; dit.*: x, t, labels, v; latents NCHW), and the ViTs dinov2,
    dinov2_reg and mae (size tiny; pixels, patch tokens after the final norm)."""
    fixture = Fixture(model="published")
    answers = {}
    if "vavae" in kinds:
        answers["vavae"] = vavae(checkout, folder, narrow)
    if "dit" in kinds:
        answers["dit"] = lightningdit(checkout, folder, narrow)
    for kind in ("dinov2", "dinov2_reg", "mae"):
        if kind in kinds:
            answers[kind] = vit(folder, narrow, kind)
    for model, values in answers.items():
        for name, t in values.items():
            side = "input" if name in ("pixels", "x", "t", "labels") else "output"
            fixture.add(f"{side}.{model}.{name}", nhwc(t) if model != "dit" and t.dim() == 4 else t)
    return fixture


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", type=pathlib.Path, help="folder of hustvl/LightningDiT")
    parser.add_argument("--full", type=pathlib.Path, metavar="FOLDER", help="full size, into this folder")
    parser.add_argument("--kinds", default="vavae,dit,dinov2,dinov2_reg,mae", help="which files")
    arguments = parser.parse_args()
    torch.set_num_threads(2 if arguments.full else 1)
    folder = arguments.full or REPOSITORY / "tests" / "fixtures"
    folder.mkdir(parents=True, exist_ok=True)
    fixture = published(arguments.checkout, folder, not arguments.full, arguments.kinds.split(","))
    path = folder / "published.safetensors"
    fixture.write(path, VERSIONS)
    if not arguments.full:
        write_page(PAGE, None, {"published": describe("published", published, fixture, path.stat().st_size)})


if __name__ == "__main__":
    main()
