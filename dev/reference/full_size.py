"""Writes a DINOv2-L or a DINOv3-L at full size, as timm writes it, and what it answers to one image.

    python dev/reference/full_size.py dinov2-l dinov2_l.safetensors tokens.safetensors

The first file (1.2 GB) has timm's names and layout, with hashed instead of trained values (see make_fixtures.py;
nothing is downloaded). The second holds `image` (1, 256, 256, 3) in [-1, 1] and `tokens` (1, 256, 1024): image
normalised, for DINOv2 resized to 224x224 before, tokens after the final norm without the class token and the registers,
computed in float64 and stored as float32. Needs about 5 GB of memory.
"""
import argparse

import safetensors.torch
import timm
import torch

from make_fixtures import encode, encoder_input, fill, nhwc, randomise

MODELS = {"dinov2-l": ("vit_large_patch14_dinov2.lvd142m", 14), "dinov3-l": ("vit_large_patch16_dinov3.lvd1689m", 16)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("weights", help="file to write the model to")
    parser.add_argument("tokens", help="file to write the image and its tokens to")
    arguments = parser.parse_args()
    name, patch = MODELS[arguments.model]
    vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).requires_grad_(False)
    randomise(vit)
    image = fill("full_size.image", (1, 3, 256, 256))
    tokens = encode(vit, encoder_input(image, patch)[1])
    outputs = {"image": nhwc(image).float().contiguous(), "tokens": tokens.float()}
    safetensors.torch.save_file(outputs, arguments.tokens)
    safetensors.torch.save_file(vit.float().state_dict(), arguments.weights, metadata={"format": "pt"})
    print(f"{sum(p.numel() for p in vit.parameters()):,} parameters, tokens {tuple(tokens.shape)}, "
          f"standard deviation {tokens.std():.4f}")


if __name__ == "__main__":
    main()
