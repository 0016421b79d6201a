"""Writes tests/fixtures/mmdit.safetensors: what minFM's FluxDenoiser answers.

    python dev/reference/make_mmdit_fixture.py MINFM FLUX     checkouts of Kai-46/minFM and black-forest-labs/flux

The original class with its forward, in float64, parameters and inputs being hashes of their names, those that it starts
at zero too. Captions have different lengths, the latent is not square. Each image alone also goes through FLUX's own
module, and both agree (seen: 7e-9). flash_attn and knapformer, which minFM imports, are replaced: the first by
PyTorch's attention, the second, of several GPUs, by nothing. Needs einops.
"""
import importlib.metadata
import math
import pathlib
import sys
import types

import torch
import torch.nn.functional as F

from fixture_file import DTYPE, Fixture, backward_from, fill, parameter_gradients, run

if len(sys.argv) < 3 or not pathlib.Path(sys.argv[1], "models").is_dir():
    sys.exit(__doc__)
MINFM, FLUX = (str(pathlib.Path(sys.argv.pop(1)).resolve()) for _ in range(2))
VERSIONS = {"torch": importlib.metadata.version("torch").split("+")[0]}
CONFIG = dict(dim=48, heads=3, doubles=2, singles=2, axes=[4, 6, 6], text=10, vector=7, guidance=True, channels=5, h=3,
              w=2)
LENGTHS = [4, 1, 3]


def attention_of_lengths(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
    """flash_attn_varlen_func: rows (sum of lengths, heads, channels), attention within each piece."""
    assert not causal and (cu_seqlens_q == cu_seqlens_k).all()
    pieces = []
    for begin, end in zip(cu_seqlens_q[:-1], cu_seqlens_q[1:]):
        rows = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        pieces.append(F.scaled_dot_product_attention(*rows).transpose(0, 1))
    return torch.cat(pieces)


def import_minfm():
    """The class, computing in the type of its parameters throughout; time's features as those of float64."""
    class Configurable:
        def __class_getitem__(cls, item):
            return cls

    replaced = {"knapformer": dict(SequenceBalancer=object),
                "flash_attn": dict(flash_attn_varlen_func=attention_of_lengths),
                "utils.comm": dict(all_gather_with_padding=None),
                "utils.config": dict(BaseParams=object, ConfigurableModule=Configurable)}
    for name, members in replaced.items():
        sys.modules[name] = types.ModuleType(name)
        for member, value in members.items():
            setattr(sys.modules[name], member, value)
    torch.cuda.get_device_name = lambda *unused: "none"
    torch.Tensor.float = lambda self: self
    sys.path.insert(0, MINFM)
    from models import flux_denoiser
    flux_denoiser.check_dtype = lambda *unused: None
    return flux_denoiser


def time_features(t):
    angle = t.double()[:, None] * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def make_model(module):
    params = module.FluxDenoiserParams(
        d_model=CONFIG["dim"], d_head=CONFIG["dim"] // CONFIG["heads"], n_ds_blocks=CONFIG["doubles"],
        n_ss_blocks=CONFIG["singles"], d_txt=CONFIG["text"], d_img=CONFIG["channels"], d_vec=CONFIG["vector"],
        rope_axis_dim=CONFIG["axes"], guidance_embed=CONFIG["guidance"])
    model = module.FluxDenoiser(params).to(DTYPE)
    model.t_posenc = lambda t: time_features(1000 * t)
    return model


def randomise(model):
    """Fills every parameter and returns {name: (base, amplitude)}."""
    rules = {}
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1:
            rules[name] = float(name.endswith("scale")), 0.25
        else:
            rules[name] = 0.0, 2.0 ** round(math.log2(math.sqrt(3.0 / tensor.shape[1])))
        with torch.no_grad():
            tensor.copy_(fill(name, tensor.shape, *rules[name]))
    return rules


def positions():
    return torch.tensor([(0, y, x) for y in range(CONFIG["h"]) for x in range(CONFIG["w"])])


def answer(model, text, xt, t, pooled, guidance):
    """The velocity (B, h, w, C) of padded text (B, L, dt)."""
    B, N = len(xt), CONFIG["h"] * CONFIG["w"]
    rows = torch.cat([image[-length:] for image, length in zip(text, LENGTHS)])
    v = model(rows, torch.tensor(LENGTHS), torch.zeros(len(rows), 3, dtype=torch.int64), xt.reshape(B * N, -1),
              torch.tensor([N] * B), positions().repeat(B, 1), t, pooled, guidance)
    return v.reshape(xt.shape)


def check_flux(model, text, xt, t, pooled, guidance, want):
    """FLUX's own module, an image at a time."""
    sys.path.insert(0, str(pathlib.Path(FLUX, "src")))
    from flux import model as flux_model
    flux_model.timestep_embedding = lambda t, dim: time_features(1000 * t).to(DTYPE)
    other = flux_model.Flux(flux_model.FluxParams(
        in_channels=CONFIG["channels"], out_channels=CONFIG["channels"], vec_in_dim=CONFIG["vector"],
        context_in_dim=CONFIG["text"], hidden_size=CONFIG["dim"], mlp_ratio=4.0, num_heads=CONFIG["heads"],
        depth=CONFIG["doubles"], depth_single_blocks=CONFIG["singles"], axes_dim=CONFIG["axes"], theta=10000,
        qkv_bias=True, guidance_embed=CONFIG["guidance"])).to(DTYPE)
    other.load_state_dict(model.state_dict())
    worst = 0.0
    for b, length in enumerate(LENGTHS):
        rows = text[b:b + 1, -length:]
        with torch.no_grad():
            v = other(xt[b].reshape(1, -1, CONFIG["channels"]), positions()[None].to(DTYPE), rows,
                      torch.zeros(1, length, 3, dtype=DTYPE), t[b:b + 1], pooled[b:b + 1], guidance[b:b + 1])
        difference = v.reshape(xt[b].shape) - want[b]
        worst = max(worst, float(difference.norm() / want[b].norm()))
    print(f"FLUX's module and minFM's differ by {worst:.2g}")
    assert worst < 1e-5


def mmdit():
    """The FLUX-style transformer by minFM, two double and two single blocks, guidance too: captions of 4, 1 and 3 rows,
    right-aligned in 4, latents of 3 x 2 positions (B, h, w, C); time 0 is data."""
    model = make_model(import_minfm())
    B, L = len(LENGTHS), max(LENGTHS)
    fixture = Fixture(model="mmdit", lengths=LENGTHS, **CONFIG)
    fixture.parameters(model, randomise(model), generated=True)
    inputs = dict(text=fill("input.text", (B, L, CONFIG["text"]), amplitude=2.0),
                  xt=fill("input.xt", (B, CONFIG["h"], CONFIG["w"], CONFIG["channels"]), amplitude=2.0),
                  t=torch.tensor([0.0625, 0.5, 0.96875], dtype=DTYPE),
                  pooled=fill("input.pooled", (B, CONFIG["vector"]), amplitude=2.0),
                  guidance=torch.tensor([1.0, 3.5, 2.25], dtype=DTYPE))
    for name, value in inputs.items():
        fixture.add(f"input.{name}", value)
    v = answer(model, *inputs.values())
    check_flux(model, *inputs.values(), v.detach())
    backward_from(fixture, "v", v)
    fixture.gradients(parameter_gradients(model), sampled=True)
    return fixture


if __name__ == "__main__":
    run(__doc__, (mmdit,), VERSIONS)
