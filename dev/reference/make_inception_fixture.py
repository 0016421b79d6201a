"""Writes tests/fixtures/inception.safetensors: what pytorch-fid's Inception answers to two photographs when its weights
are numbers made from integers (tests/vectors.h), which the test computes itself.

    python dev/reference/make_inception_fixture.py                  (needs pytorch-fid, torchvision, scikit-image)
    python dev/reference/make_inception_fixture.py -weights DIR     also DIR/inception.safetensors and .pth: the module's
                                                                    state_dict, to see that both load under its names

The network is computed in float64, the pictures' resize in float32, as pytorch-fid has both: the resize is done once in
each mode. "PT" is the module's own input; "TF" the resize of TensorFlow's graph, written out here. The logits have no
bias, the spatial features are channels 0 to 6 of Mixed_6d.branch1x1, position by position.
"""
import argparse
import math
import pathlib

import numpy as np
import pytorch_fid
import skimage
import skimage.data
import torch
import torchvision
from pytorch_fid import inception as fid
from safetensors.torch import save_file

SIZE, SHOWN = 128, 64  # of the pictures; entries of a feature that are kept


def uniform(stream, count):
    """U(stream, 0 ... count - 1) of tests/vectors.h."""
    x = np.arange(count, dtype=np.uint64) * 0x9E3779B1 + stream * 0x85EBCA77 + 0x165667B1 & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x2C1B3C6D & 0xFFFFFFFF
    x ^= x >> 12
    x = x * 0x297A2D39 & 0xFFFFFFFF
    x ^= x >> 15
    return x / 2.0**32


def fill(tensor, stream, low, high):
    values = low + (high - low) * uniform(stream, tensor.numel())
    tensor.data = torch.from_numpy(values).reshape(tensor.shape).to(tensor.dtype)


def network():
    """pytorch-fid's module without its download, with weights from integers."""
    fid.load_state_dict_from_url = lambda *_, **__: None
    load, torch.nn.Module.load_state_dict = torch.nn.Module.load_state_dict, lambda self, *_: None
    net = fid.fid_inception_v3()
    torch.nn.Module.load_state_dict = load
    net = net.double().eval()
    convs = convolutions(net)
    assert len(convs) == 94
    for t, conv in enumerate(convs):
        bound = math.sqrt(6 / conv.conv.weight[0].numel())
        fill(conv.conv.weight, 100 + t, -bound, bound)
        fill(conv.bn.weight, 300 + t, 0.5, 1.5)
        fill(conv.bn.bias, 500 + t, -0.1, 0.1)
        fill(conv.bn.running_mean, 700 + t, -0.1, 0.1)
        fill(conv.bn.running_var, 900 + t, 0.5, 1.5)
    fill(net.fc.weight, 1100, -math.sqrt(6 / 2048), math.sqrt(6 / 2048))
    fill(net.fc.bias, 1101, -0.1, 0.1)
    return net


def convolutions(net):
    """In the order of the file, which is that of the modules but for the heads of torchvision that are not used."""
    return [m for name, m in net.named_modules() if isinstance(m, torchvision.models.inception.BasicConv2d)
            and not name.startswith("AuxLogits")]


def photograph(image, size):
    """The middle of a picture, averaged to size x size bytes."""
    side = min(image.shape[:2]) // size * size
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[top:top + side, left:left + side].astype(np.float64)
    return np.round(square.reshape(size, side // size, size, side // size, 3).mean((1, 3))).astype(np.uint8)


def pt_input(bytes_):
    x = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 255
    return 2 * torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1


def tf_input(bytes_):
    x = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float()
    at = torch.arange(299, dtype=torch.float32) * np.float32(x.shape[2] / 299)
    low = at.long()
    high, f = (low + 1).clamp(max=x.shape[2] - 1), at - low
    x = x[..., low] * (1 - f) + x[..., high] * f
    x = x[:, :, low] * (1 - f)[:, None] + x[:, :, high] * f[:, None]
    return (x - 128) / 128


def features(net, x):
    """Pool, spatial and logits."""
    taken = {}
    hooks = [net.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, o: taken.update(spatial=o)),
             net.avgpool.register_forward_hook(lambda m, i, o: taken.update(pool=o))]
    net(x.double())
    for hook in hooks:
        hook.remove()
    pool = taken["pool"].flatten(1)
    return pool, taken["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1), pool @ net.fc.weight.T


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-weights", type=pathlib.Path, metavar="DIR", help="folder for the module's own files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = network()
    if arguments.weights:
        state = {k: v.float().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
        save_file(state, arguments.weights / "inception.safetensors")
        torch.save(state, arguments.weights / "inception.pth")
    pictures = np.stack([photograph(skimage.data.astronaut(), SIZE), photograph(skimage.data.chelsea(), SIZE)])
    tensors = {"bytes": torch.from_numpy(pictures)}
    with torch.no_grad():
        for mode, make in (("pt", pt_input), ("tf", tf_input)):
            for name, value in zip(("pool", "spatial", "logits"), features(net, make(pictures))):
                tensors[f"{mode}.{name}"] = (value if name == "pool" else value[:, :SHOWN]).float().contiguous()
    save_file(tensors, "tests/fixtures/inception.safetensors",
              {"pytorch-fid": pytorch_fid.__version__, "torch": torch.__version__,
               "torchvision": torchvision.__version__, "scikit-image": skimage.__version__})


main()
