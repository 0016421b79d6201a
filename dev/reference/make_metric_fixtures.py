"""Writes tests/fixtures/metrics.safetensors for tests/test_reconstruction.c: photographs, distorted copies, and what
the usual packages say of each pair; and torchvision's crops.

    pip install -r dev/reference/requirements.txt
    python dev/reference/make_metric_fixtures.py

image.NAME and image.NAME.DISTORTION are bytes (H, W, 3): windows of the photographs that scikit-image carries, copies
through JPEG, noise, blur, another brightness, a coarser grid, and one that is equal. score.NAME.DISTORTION is (PSNR,
SSIM, LPIPS): scikit-image's peak_signal_noise_ratio of the bytes (-1 for equal images, where it is infinite);
torchmetrics' structural_similarity_index_measure and lpips.LPIPS(net="vgg") of the colours in [-1, 1], in float64
(-1: not computed). LPIPS's weights are hashes, mix(s, i), because trained ones would have to be downloaded: the
streams stand below. crop.H.W.SIZE (3, SIZE, SIZE) is Resize(SIZE) and CenterCrop(SIZE) of torchvision, on a float
tensor in [0, 1], then scaled to [-1, 1], of the picture that make_crop_fixture.py describes.
"""
import io
import pathlib

import lpips
import numpy as np
import skimage.data
import torch
import torchmetrics
import torchvision
from PIL import Image, ImageFilter
from safetensors.numpy import save_file
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms import CenterCrop, Resize, ToTensor

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 51, 60  # odd, and no multiple of anything
WINDOWS = {"astronaut": (40, 190), "chelsea": (90, 120), "coffee": (100, 250), "rocket": (60, 300)}  # top, left
PERCEPTUAL = {("astronaut", "jpeg"), ("coffee", "noise")}  # the pairs with an LPIPS: few, they cost the test its time
# height, width, size: smaller by a fraction; by 2, with many ties and halves in the middle; enlarged; one side fits;
# tall; very wide
CROPS = [(97, 131, 32), (64, 90, 32), (66, 64, 32), (20, 33, 32), (48, 32, 32), (211, 70, 48), (40, 301, 33),
         (75, 75, 32)]


def mix(stream, count):
    """uint32 hashes of 0 ... count - 1, tests/vectors.h."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
    x += np.uint32((stream * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF)
    x = (x ^ (x >> 15)) * np.uint32(0x2C1B3C6D)
    x = (x ^ (x >> 12)) * np.uint32(0x297A2D39)
    return x ^ (x >> 15)


def uniform(stream, shape):
    return torch.from_numpy(mix(stream, int(np.prod(shape))) / 2.0**32).reshape(shape)


def hashed_lpips():
    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).double().eval()
    convs = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 13 and len(model.lins) == 5
    with torch.no_grad():  # the package keeps shift and scale in float32, the C test works in double
        for name, values in {"shift": [-0.030, -0.088, -0.188], "scale": [0.458, 0.448, 0.450]}.items():
            getattr(model.scaling_layer, name).copy_(torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))
        for k, conv in enumerate(convs):
            bound = (6 / (9 * conv.in_channels)) ** 0.5
            conv.weight.copy_((2 * uniform(1200 + k, conv.weight.shape) - 1) * bound)
            conv.bias.copy_(0.2 * uniform(1220 + k, conv.bias.shape) - 0.1)
        for k, lin in enumerate(model.lins):
            weight = lin.model[-1].weight
            weight.copy_(0.1 * uniform(1240 + k, weight.shape))
    return model


def distortions(image):
    picture, noise = Image.fromarray(image), np.random.default_rng(1).normal(0, 12, image.shape)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=15)
    small = picture.resize((WIDTH // 3, HEIGHT // 3), Image.BOX).resize((WIDTH, HEIGHT), Image.BICUBIC)
    return {"jpeg": np.array(Image.open(jpeg)), "noise": np.clip(image + noise, 0, 255).astype(np.uint8),
            "blur": np.array(picture.filter(ImageFilter.GaussianBlur(1.5))),
            "bright": np.clip(image * 1.1 + 10, 0, 255).astype(np.uint8), "coarse": np.array(small),
            "equal": image.copy()}


def colours(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].double() / 127.5 - 1


def scores(a, b, model):
    psnr = -1.0 if np.array_equal(a, b) else peak_signal_noise_ratio(a, b, data_range=255)
    ssim = structural_similarity_index_measure(colours(b), colours(a), data_range=(-1.0, 1.0))
    with torch.no_grad():
        distance = model(colours(b), colours(a)) if model else -1.0
    return np.array([psnr, float(ssim), float(distance)])


def picture(height, width):
    """As in make_crop_fixture.py."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    smooth = (y * (3 + c) + x * (5 - c)) % 511
    smooth = np.where(smooth > 255, 510 - smooth, smooth)
    edge = np.where((x // 37 + y // 29 + c) % 3 == 0, 120, 0)
    noise = ((y * 7919 + x * 104729 + c * 1299709) % 65537 * 31) % 97
    return np.clip(smooth + edge + noise - 60, 0, 255).astype(np.uint8)


def main():
    torch.set_num_threads(1)
    assert tuple(int(n) for n in torchmetrics.__version__.split(".")[:3]) > (1, 4, 1), "older ones cut the edges off"
    tensors, model = {}, hashed_lpips()
    for name, (top, left) in WINDOWS.items():
        image = getattr(skimage.data, name)()[top:top + HEIGHT, left:left + WIDTH].copy()
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
        tensors[f"image.{name}"] = image
        for kind, copy in distortions(image).items():
            tensors[f"image.{name}.{kind}"] = copy
            tensors[f"score.{name}.{kind}"] = scores(image, copy, model if (name, kind) in PERCEPTUAL else None)
    for height, width, size in CROPS:
        crop = CenterCrop(size)(Resize(size)(ToTensor()(picture(height, width))))
        tensors[f"crop.{height}.{width}.{size}"] = ((crop - 0.5) / 0.5).numpy()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "lpips": "0.1.4",
                "torchmetrics": torchmetrics.__version__, "skimage": skimage.__version__}
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(tensors, REPOSITORY / "tests/fixtures/metrics.safetensors", versions)
    for name, value in tensors.items():
        if name.startswith("score."):
            print(name, value)


main()
