"""Writes tests/fixtures/drawing.safetensors: whole drawings by the samplers of DiT and SiT themselves; and published_dit.pt.

    git clone https://github.com/facebookresearch/DiT; git clone https://github.com/willisma/SiT
    python dev/reference/make_drawing_fixture.py DiT SiT

Both checkouts' own models, with forward_with_cfg, and their own loops draw in float64. Around them stand the noise, which is
that of common/program/rng.h in the place of PyTorch's; time features in float64, which both compute in float32; and
torch's default type and Tensor.float, by which both go to float32 in between, leave float64 as it is. Parameters are
hashes as in make_fixtures.py. Needs timm and torchdiffeq. Look next at check_dit.py, which compares the models alone.
"""
import argparse
import pathlib
import sys
from unittest import mock

import torch

from check_dit import import_models
from check_lightningdit import keep
from fixture_file import DTYPE, REPOSITORY, Fixture, describe, philox_normal, write_page
from lightningdit_twin import time_features
from make_dit_fixtures import VERSIONS, hidden_width, make_model, randomise

NOISE_STREAM = 7  # RANDOM_NOISE of common/program/rng.h
MODEL = dict(side=4, patch=2, channels=4, dim=40, depth=2, heads=2, classes=7, swiglu=False, classic=True, sigma=True)
IMAGES, LABELS, SEED, CFG = [3, 8], [2, 5], 11, 4.0
PAGE = REPOSITORY / "tests" / "fixtures" / "README.md"


class Noise:
    """In the place of torch.randn and randn_like: the noise of the images of the batch at step 0, 1, 2 and so on. With
    guidance an image stands twice in the batch, and has the same noise twice."""

    def __init__(self):
        self.step = 0

    def __call__(self, like, **unused):
        shape = tuple(like.shape if torch.is_tensor(like) else like)
        channels, side = shape[1:3]
        n, rows = channels * side * side, []
        for image in IMAGES[:shape[0]]:
            row = philox_normal(SEED, NOISE_STREAM, self.step, image * n, n)
            rows.append(torch.from_numpy(row).reshape(side, side, channels).permute(2, 0, 1))
        self.step += 1
        return torch.stack(rows).repeat(-(-shape[0] // len(IMAGES)), 1, 1, 1)


def start(count, cfg):
    """A new run's noise, what it begins with, and the arguments of the model; guided images stand twice, as theirs do."""
    noise, labels = Noise(), torch.tensor(LABELS[:count])
    x = noise((count, MODEL["channels"], MODEL["side"], MODEL["side"]))
    if not cfg:
        return noise, x, dict(y=labels)
    return noise, torch.cat([x, x]), dict(y=torch.cat([labels, torch.full_like(labels, MODEL["classes"])]), cfg_scale=CFG)


def draw(sample, model, count=2, cfg=True):
    """The final latents of `count` images: sample(function, x, arguments of the function)."""
    noise, x, arguments = start(count, cfg)
    forward = model.forward_with_cfg if cfg else model.forward
    with torch.no_grad(), keep(DTYPE), mock.patch("torch.randn", noise), mock.patch("torch.randn_like", noise):
        return sample(forward, x, arguments)[:count]


def original(models, name, twin):
    """The checkout's class with the twin's parameters."""
    model = getattr(models, name)(input_size=MODEL["side"], patch_size=MODEL["patch"], hidden_size=MODEL["dim"],
                                  depth=MODEL["depth"], num_heads=MODEL["heads"], num_classes=MODEL["classes"])
    model = model.to(DTYPE).eval()
    model.load_state_dict(twin.state_dict())
    model.t_embedder.timestep_embedding = lambda t, dim: time_features(t.to(DTYPE))
    return model


def drawing(dit_folder, sit_folder):
    """Final latents of two images, of the numbers in the config, drawn by DiT's and SiT's own loops with one network of
    their kind. dit_*: p_sample_loop with 250 and 20 of the 1000 times, ddim_sample_loop (eta 0) with 20; the network says
    noise. sit_*: sample_ode, Euler and dopri5, and sample_sde (Euler, sigma, Mean, 0.04), 250 and 20 steps; it says a
    velocity. *_cfg: forward_with_cfg, which guides the first 3 of 4 channels. dopri5 draws the first image alone, with
    SiT's tolerances; dopri5_cfg with rtol 1e-9 and atol 1e-11, since SiT's steps depend on the whole batch, in which a
    guided image stands twice."""
    sys.path += [str(dit_folder), str(sit_folder)]
    import diffusion
    import transport
    twin = make_model(**MODEL)
    fixture = Fixture(model="classic", hidden=hidden_width(MODEL), images=IMAGES, seed=SEED, cfg=CFG, cfg_channels=3,
                      **MODEL)
    fixture.parameters(twin, randomise(twin), generated=True)
    fixture.add("param.pos_embed", twin.pos_embed)
    fixture.add("input.labels", LABELS)
    dit, sit = (original(import_models(f), n, twin) for f, n in ((dit_folder, "DiT"), (sit_folder, "SiT")))
    flow = transport.Sampler(transport.create_transport())

    def ddpm(steps, loop="p_sample_loop"):
        process = diffusion.create_diffusion(str(steps))
        return lambda f, x, arguments: getattr(process, loop)(f, x.shape, x, clip_denoised=False, model_kwargs=arguments,
                                                              device="cpu")

    def ode(method, points, **tolerances):
        solve = flow.sample_ode(sampling_method=method, num_steps=points, **tolerances)
        return lambda f, x, arguments: solve(x, f, **arguments)[-1]

    def sde(steps):
        solve = flow.sample_sde(sampling_method="Euler", diffusion_form="sigma", num_steps=steps)
        return lambda f, x, arguments: solve(x, f, **arguments)[-1]

    for name, sample, model, options in (
            ("dit_ddpm_250_cfg", ddpm(250), dit, {}), ("dit_ddpm_20", ddpm(20), dit, dict(cfg=False)),
            ("dit_ddim_20_cfg", ddpm(20, "ddim_sample_loop"), dit, {}),
            ("sit_euler_50_cfg", ode("euler", 50), sit, {}),
            ("sit_dopri5", ode("dopri5", 50), sit, dict(count=1, cfg=False)),
            ("sit_dopri5_cfg", ode("dopri5", 2, rtol=1e-9, atol=1e-11), sit, {}),
            ("sit_sde_250_cfg", sde(250), sit, {}), ("sit_sde_20", sde(20), sit, dict(cfg=False))):
        fixture.add(f"output.{name}", draw(sample, model, **options))
    return fixture


def write_published(dit_folder, path):
    """published_dit.pt: DiT's weights as DiT publishes them, a plain state_dict, for the latents of published_vavae.pt."""
    config = MODEL | dict(channels=2)
    twin = make_model(**config)
    randomise(twin)
    model = import_models(dit_folder).DiT(input_size=4, patch_size=2, in_channels=2, hidden_size=config["dim"],
                                          depth=config["depth"], num_heads=config["heads"], num_classes=config["classes"])
    model.load_state_dict(twin.state_dict())
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("dit", type=pathlib.Path, help="folder of facebookresearch/DiT")
    parser.add_argument("sit", type=pathlib.Path, help="folder of willisma/SiT")
    folders = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(DTYPE)
    fixture = drawing(folders.dit, folders.sit)
    write_published(folders.dit, REPOSITORY / "tests" / "fixtures" / "published_dit.pt")
    path = REPOSITORY / "tests" / "fixtures" / "drawing.safetensors"
    fixture.write(path, VERSIONS)
    write_page(PAGE, None, {"drawing": describe("drawing", drawing, fixture, path.stat().st_size)})


if __name__ == "__main__":
    main()
