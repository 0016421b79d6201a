"""Writes tests/fixtures/pytorch_*.pt and numpy_*.npz: files that other programs wrote, for tests/test_pytorch_file.c.
Values are small formulas that the test computes too.

    python dev/reference/make_pytorch_fixtures.py             # numpy's files, and what this interpreter's torch writes

Run it with several versions of PyTorch, each of which writes the formats that it has:

    python3.6 with torch 1.0.0, numpy 1.16      pytorch_1.0.pt                 five pickles (protocol 2)
    python3.8 with torch 1.5.1, numpy 1.19      pytorch_1.5.pt, _1.5_zip.pt    five pickles; the first zip files
    python3.8 with torch 1.12.1, numpy 1.19     pytorch_1.12.pt                zip
    python3.11 with torch 2.15, numpy 2         pytorch_2.15.pt, _protocol4.pt, _legacy.pt, _lightning.pt, _module.pt,
                                                _hostile.pt, and numpy's

Keys of storages are addresses in the old container, so runs differ there in these bytes and their order.
"""
import argparse
import collections
import io
import os
import pathlib
import sys
import types
import zipfile

import numpy as np
import torch

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures"
VERSION = ".".join(torch.__version__.split(".")[:2])


class Hostile:
    """What a pickle can do to Python: nothing of it may happen in C."""

    def __reduce__(self):
        return os.system, ("touch hostile_pickle_was_executed",)


def tensors():
    """All types, views, strides; storages that are shared."""
    w = torch.arange(12.0).view(3, 4)
    line = torch.arange(10.0)
    d = collections.OrderedDict()
    d["w"] = w
    d["transposed"] = w.t()
    d["cut"] = w[1:, 1:3]
    d["tail"] = line[4:]
    d["every_third"] = line[::3]
    d["same"] = w
    d["expanded"] = torch.ones(1, 1).expand(1, 1)
    d["empty"] = torch.zeros(0, 3)
    d["scalar"] = torch.tensor(2.5)
    d["f64"] = torch.tensor([1 / 3.0], dtype=torch.float64)
    d["f16"] = torch.tensor([1.5, -2.25]).half()
    d["i64"] = torch.tensor([-5, 1 << 40])
    d["i32"] = torch.tensor([-7, 8], dtype=torch.int32)
    d["i16"] = torch.tensor([-300, 300], dtype=torch.int16)
    d["i8"] = torch.tensor([-1, 2], dtype=torch.int8)
    d["u8"] = torch.tensor([0, 255], dtype=torch.uint8)
    if VERSION != "1.0":
        d["bf16"] = torch.tensor([1.5, -3.0]).to(torch.bfloat16)
        d["bool"] = torch.tensor([True, False])
    if hasattr(torch, "uint16"):
        d["u16"] = torch.tensor([1, 65535], dtype=torch.uint16)
    return d


def checkpoint():
    """A training checkpoint as LightningDiT writes it: models, optimiser, arguments, numbers of numpy."""
    linear = torch.nn.Linear(2, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(6.0).view(3, 2))
        linear.bias.copy_(torch.tensor([7.0, 8.0, 9.0]))
    optimiser = torch.optim.AdamW(linear.parameters(), lr=0.001) if hasattr(torch.optim, "AdamW") else None
    optimiser = optimiser or torch.optim.Adam(linear.parameters(), lr=0.001)
    linear(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    with torch.no_grad():
        linear.weight.copy_(torch.arange(6.0).view(3, 2))
        linear.bias.copy_(torch.tensor([7.0, 8.0, 9.0]))
    return {"model": tensors(), "ema": linear.state_dict(), "opt": optimiser.state_dict(),
            "args": argparse.Namespace(lr=2e-4, model="LightningDiT-XL/1", qk=True, path=None, size=(256, 256)),
            "epoch": 7, "f8": np.float64(0.25), "i8": np.int64(-3), "f4": np.float32(1.5), "long": 1 << 70,
            "random": np.random.get_state(), "parameter": torch.nn.Parameter(torch.ones(2)),
            "nested": collections.defaultdict(dict, {5: {"x": torch.ones(1)}}), "list": [torch.zeros(2), 3]}


def module(name, **members):
    """A module that is not installed, so that its class's name gets into a pickle."""
    for end in range(1, name.count(".") + 2):
        sys.modules[".".join(name.split(".")[:end])] = types.ModuleType(name)
    made = sys.modules[name]
    for key, value in members.items():
        value.__module__ = name
        setattr(made, key, value)
    return made


def lightning():
    """A checkpoint with classes of pytorch-lightning and omegaconf."""
    parsing = module("pytorch_lightning.utilities.parsing", AttributeDict=type("AttributeDict", (dict,), {}))
    config = module("omegaconf.dictconfig", DictConfig=type("DictConfig", (), {}))
    hidden = config.DictConfig()
    hidden.content = {"lr": 0.5, "tensor": torch.ones(3)}
    return {"state_dict": {"conv.weight": torch.arange(4.0).view(1, 1, 2, 2)}, "global_step": 400,
            "pytorch-lightning_version": "1.9.5", "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": None}},
            "hyper_parameters": parsing.AttributeDict(embed_dim=32, ddconfig={"z_channels": 32}, config=hidden),
            "loops": {"fit_loop": {"state_dict": {}}}, "lr_schedulers": [{"base_lrs": [0.1]}]}


def write_numpy(folder):
    images = (np.arange(4 * 5 * 3) * 7 % 256).astype(np.uint8).reshape(4, 5, 3)
    arrays = {"arr_0": images, "arr_1": np.arange(4) * 10 - 5,
              "mu": np.arange(3) / 4, "sigma": np.arange(9.0).reshape(3, 3), "f4": np.float32([1.5, -2.5]),
              "f2": np.float16([0.5, 6e-8]), "i4": np.int32([-9, 9]), "n": np.array(50000), "one": np.array([2.5]),
              "empty": np.zeros((0, 4), np.float32), "text": np.array("h\u00e9, \u20ac"), "bytes": np.bytes_(b"abc"),
              "fortran": np.asfortranarray(np.ones((2, 3))), "fortran_1d": np.asfortranarray(np.ones(3)),
              "object": np.array([None, 1], dtype=object), "big_endian": np.array([1.0], dtype=">f8"),
              "structure": np.zeros(2, dtype=[("x", "<f4"), ("y", "<i4")])}
    np.savez(folder / "numpy_stored.npz", **arrays)
    np.savez_compressed(folder / "numpy_compressed.npz", **arrays)
    with zipfile.ZipFile(folder / "numpy_versions.npz", "w") as archive:
        for version in ((1, 0), (2, 0), (3, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.arange(3.0) + version[0], version=version)
            archive.writestr("v%d.npy" % version[0], file.getvalue(), zipfile.ZIP_DEFLATED)


def main():
    torch.manual_seed(1)
    np.random.seed(1)
    FIXTURES.mkdir(exist_ok=True)
    path = str(FIXTURES / ("pytorch_" + VERSION))
    save = lambda name, value, **options: torch.save(value, path + name + ".pt", **options)
    value = checkpoint()
    save("", value)
    if VERSION == "1.5":
        save("_zip", value, _use_new_zipfile_serialization=True)
    if torch.__version__ >= "2":
        save("_protocol4", value, pickle_protocol=4)
        save("_legacy", value, _use_new_zipfile_serialization=False)
        save("_legacy_protocol4", tensors(), pickle_protocol=4, _use_new_zipfile_serialization=False)
        save("_lightning", lightning())
        save("_module", torch.nn.Sequential(torch.nn.Linear(2, 2)))
        save("_hostile", {"weight": torch.ones(2), "x": Hostile()})
        write_numpy(FIXTURES)


main()
