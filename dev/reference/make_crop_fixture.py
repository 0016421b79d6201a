"""Writes two fixtures for tests/test_latents.c: ADM's centre crop as Pillow computes it, and a shard of latents as
LightningDiT's extract_features.py writes it (Python's safetensors). Sources and latents are integer formulas that the
test computes itself, so only the answers are stored.

    python dev/reference/make_crop_fixture.py          (needs numpy, safetensors, pillow==11.3.0)

Pillow 13 resizes tall pictures vertically first (its pull request 9549), which moves bytes by some units. ADM and
LightningDiT were made with versions that go horizontally first always, so the script refuses one that does not.
"""
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

# height, width, size: halved three times, twice, once, never; enlarged; one side fits already; sides that differ by one
CASES = [(600, 800, 64), (97, 131, 32), (257, 255, 32), (63, 200, 32), (33, 40, 64), (64, 64, 64), (130, 64, 64),
         (128, 128, 32), (515, 700, 96), (7, 5, 16), (101, 51, 32),
         (624, 218, 64), (501, 102, 48), (800, 90, 64)]  # the last three are tall


def picture(height, width):
    """Smooth bands in each channel, with edges and noise: like a photograph, for a resampler."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    smooth = (y * (3 + c) + x * (5 - c)) % 511
    smooth = np.where(smooth > 255, 510 - smooth, smooth)
    edge = np.where((x // 37 + y // 29 + c) % 3 == 0, 120, 0)
    noise = ((y * 7919 + x * 104729 + c * 1299709) % 65537 * 31) % 97
    return np.clip(smooth + edge + noise - 60, 0, 255).astype(np.uint8)


def centre_crop(image, size):
    """The text of the algorithm is in common/data/crop.h."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image)[top:top + size, left:left + size].copy()


def check_order():
    tall = Image.fromarray(picture(624, 109))
    both = tall.resize((64, 366), resample=Image.BICUBIC)
    steps = tall.resize((64, 624), resample=Image.BICUBIC).resize((64, 366), resample=Image.BICUBIC)
    if both.tobytes() != steps.tobytes():
        raise SystemExit(f"Pillow {Image.__version__} resizes tall pictures vertically first; install pillow==11.3.0")


def main():
    check_order()
    crops = {f"crop.{h}.{w}.{s}": centre_crop(Image.fromarray(picture(h, w)), s) for h, w, s in CASES}
    save_file(crops, "tests/fixtures/crop.safetensors", {"pillow": Image.__version__})
    n, C, S = 5, 3, 4
    values = np.arange(2 * n * C * S * S, dtype=np.float32).reshape(2, n, C, S, S) / 8 - 20
    shard = {"latents": values[0].copy(), "latents_flip": values[1].copy(),
             "labels": np.array([3, 0, 9, 9, 1], dtype=np.int64)}
    save_file(shard, "tests/fixtures/latents_python.safetensors",
              {"total_size": str(n), "dtype": "torch.float32", "device": "cpu"})


main()
