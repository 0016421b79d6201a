"""Writes tests/fixtures/vavae_step.safetensors: a training step of VA-VAE by its own classes.

    git clone https://github.com/hustvl/LightningDiT
    python dev/reference/make_vavae_fixture.py LightningDiT

AutoencoderKL.training_step of the checkout's vavae/ runs as it is, in float64: encoder, draw from the posterior, decoder,
LPIPSWithDiscriminator with both adaptive weights, and both backwards. Around it stand what is downloaded or drawn
elsewhere: a narrow LPIPS of the lpips package, a narrow discriminator, a small ViT of timm for the foundation model (of
type mae, whose image is not resized), the noise, pytorch-lightning's base class, and optimisers that keep the gradients.
Parameters and inputs are hashes as in make_fixtures.py. Needs what that script needs, einops and requests.
"""
import argparse
import functools
import pathlib
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn

from fixture_file import DTYPE, REPOSITORY, Fixture, describe, fill, nhwc, write_page
from make_fixtures import (VERSIONS, NLayerDiscriminator, add_running_statistics, away_from_kinks, cnn_arguments,
                           keep_double, make_lpips, make_vit, randomise)

BATCH, CHUNK, HEIGHT, WIDTH = 4, 2, 32, 48
CNN = dict(ch=32, ch_mult=(1, 1, 1, 1, 2), num_res_blocks=1, z_channels=4)
TEACHER = dict(patch=16, pos_grid=3, embed=24, heads=3, depth=2, layerscale=False, gelu="exact", class_token=True,
               registers=0, pos_prefix=True)
LOSS = dict(disc_start=0, kl_weight=1.0, disc_weight=0.5, vf_weight=0.1, adaptive_vf=True, distmat_margin=0.25,
            cos_margin=0.5)
PAGE = REPOSITORY / "tests" / "fixtures" / "README.md"


class KeepGradients:
    """In the place of an optimiser: its step adds the gradients to a sum and leaves the weights alone."""

    def __init__(self, parameters, sums):
        self.parameters, self.sums = dict(parameters), sums

    def zero_grad(self):
        for p in self.parameters.values():
            p.grad = None

    def step(self):
        for name, p in self.parameters.items():
            self.sums[name] = self.sums.get(name, 0) + p.grad.clone() * CHUNK / BATCH


class Module(nn.Module):
    """In the place of pytorch_lightning.LightningModule."""

    global_step = 0

    def optimizers(self):
        return self.kept

    def manual_backward(self, loss):
        loss.backward()

    def log(self, name, value, **_):
        self.logged[name] = value

    def log_dict(self, values, **_):
        self.logged.update(values)


def import_vavae(checkout):
    """The modules of vavae/ with stand-ins for what they import and this step does not use."""
    sys.path.insert(0, str(checkout / "vavae"))
    sys.modules["pytorch_lightning"] = types.SimpleNamespace(LightningModule=Module)
    sys.modules["taming.modules.vqvae.quantize"] = types.SimpleNamespace(VectorQuantizer2=None)
    from ldm.models import autoencoder, foundation_models
    from ldm.modules.losses import contperceptual
    contperceptual.LPIPS = lambda: make_lpips(4)
    contperceptual.NLayerDiscriminator = functools.partial(NLayerDiscriminator, ndf=8)
    foundation_models.create_foundation_model = lambda kind: (make_vit(TEACHER).requires_grad_(False), TEACHER["embed"])
    return autoencoder.AutoencoderKL


def make_model(checkout):
    loss = dict(target="ldm.modules.losses.LPIPSWithDiscriminator", params=LOSS)
    model = import_vavae(checkout)(
        ddconfig=dict(double_z=True, dropout=0.0, **cnn_arguments(CNN)), lossconfig=loss,
        embed_dim=CNN["z_channels"], use_vf="mae", reverse_proj=True)
    rules = randomise(model)
    rules.pop("loss.logvar")
    with torch.no_grad():
        model.loss.logvar.zero_()
    return model.train(), rules


def optimizers(model, sums):
    """Over the parameters that VA-VAE's configure_optimizers takes."""
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "linear_proj.")
    named = list(model.named_parameters())
    return (KeepGradients([(n, p) for n, p in named if n.startswith(parts)], sums),
            KeepGradients([(n, p) for n, p in named if n.startswith("loss.discriminator.")], sums))


def step(model, image, noise):
    """One chunk through training_step: what it logs, and what passes between its parts."""
    seen = {}
    hooks = [model.quant_conv.register_forward_hook(lambda _, __, out: seen.update(moments=out)),
             model.post_quant_conv.register_forward_pre_hook(lambda _, args: seen.update(z=args[0])),
             model.decoder.register_forward_hook(lambda _, __, out: seen.update(image=out)),
             model.linear_proj.register_forward_hook(lambda _, __, out: seen.update(projected=out)),
             model.foundation_model.register_forward_hook(lambda _, __, out: seen.update(teacher=out))]
    model.logged = {}
    model.loss.perceptual_loss.eval()
    original = torch.randn
    torch.randn = lambda shape: noise
    try:
        with keep_double():
            model.training_step({"image": image.permute(0, 2, 3, 1)}, 0)
    finally:
        torch.randn = original
        for hook in hooks:
            hook.remove()
    names = dict(nll="nll_loss", kl="kl_loss", vf="vf_loss", loss_g="g_loss", omega_g="d_weight", omega_vf="vf_weight",
                 total="total_loss", loss_d="disc_loss", logits_real="logits_real", logits_fake="logits_fake")
    return seen | {ours: model.logged[f"train/{theirs}"] for ours, theirs in names.items()}


def vf_margins(out):
    """How close the two losses within L_vf come to their kinks."""
    similarity = lambda t: torch.einsum("bci,bcj->bij", *[F.normalize(t.flatten(2), dim=1)] * 2)
    difference = (similarity(out["projected"]) - similarity(out["teacher"])).abs().detach()
    cosine = F.cosine_similarity(out["teacher"], out["projected"]).detach()
    off_diagonal = difference[:, ~torch.eye(difference.shape[1], dtype=bool)]
    assert (off_diagonal > LOSS["distmat_margin"]).any() and (off_diagonal < LOSS["distmat_margin"]).any()
    return [float((difference - LOSS["distmat_margin"]).abs().min()),
            float((1 - LOSS["cos_margin"] - cosine).abs().min())]


def vavae_step(checkout, seed=25):
    """A whole training step of VA-VAE by AutoencoderKL.training_step of LightningDiT's vavae/, for two chunks of 2
    images: CNN encoder and decoder with the 1x1 convolutions around the latent, which is drawn with input.noise, LPIPS,
    discriminator, and a ViT as teacher that sees the image as it is. Each chunk has its own BatchNorm statistics and
    adaptive weights omega_g and omega_vf (at encoder.conv_out.weight). Loss of a chunk: total = nll + kl_weight kl +
    omega_g loss_g + omega_vf vf; loss_d is the discriminator's; logits_* are means. Gradients are averages over the
    chunks. after.*: running statistics after chunk 0 alone. Scalars have one entry a chunk. Names are those of VA-VAE's
    files."""
    model, rules = make_model(checkout)
    fixture = Fixture(model="vavae_step", height=HEIGHT, width=WIDTH, batch=BATCH, chunk=CHUNK, ndf=8, n_layers=3,
                      lpips_base_channels=4, cnn=CNN, teacher=TEACHER, loss=LOSS)
    fixture.parameters(model, rules, generated=True)
    image = fill(f"vavae_step.image.{seed}", (BATCH, 3, HEIGHT, WIDTH))
    noise = fill("vavae_step.noise", (BATCH, CNN["z_channels"], HEIGHT // 16, WIDTH // 16), amplitude=2.0)
    fixture.image("input.image", image)
    fixture.image("input.noise", noise)
    sums, outputs = {}, []
    model.kept = optimizers(model, sums)
    with away_from_kinks(model.loss, fixture.margins):
        for x, eta in zip(image.split(CHUNK), noise.split(CHUNK)):
            outputs.append(step(model, x, eta))
            fixture.margins.append(float((x - outputs[-1]["image"].detach()).abs().min()))
            fixture.margins += vf_margins(outputs[-1])
            if len(outputs) == 1:
                add_running_statistics(fixture, nn.ModuleDict({"loss": nn.ModuleDict(
                    {"discriminator": model.loss.discriminator})}))
    for name in outputs[0]:
        if name in ("projected", "teacher"):
            continue
        parts = [torch.as_tensor(out[name]).detach() for out in outputs]
        fixture.add(f"output.{name}", nhwc(torch.cat(parts)) if parts[0].dim() == 4 else torch.stack(parts))
    fixture.gradients(sums, sampled=True)
    return fixture


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", type=pathlib.Path, help="folder of hustvl/LightningDiT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(DTYPE)
    fixture = vavae_step(arguments.checkout)
    path = REPOSITORY / "tests" / "fixtures" / "vavae_step.safetensors"
    print("closest to a kink:", min(fixture.margins))
    fixture.write(path, VERSIONS)
    write_page(PAGE, None, {"vavae_step": describe("vavae_step", vavae_step, fixture, path.stat().st_size)})


if __name__ == "__main__":
    main()
