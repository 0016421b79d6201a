"""DINOv3-S at full size by facebook's own code, by timm and by transformers: prints how far their tokens differ, and
writes what each saves, for check_encoder to load.

    python dev/reference/check_dinov3.py CHECKOUT FOLDER      # a checkout of facebookresearch/dinov3
    for file in FOLDER/facebook.pth FOLDER/hugging_face/model.safetensors FOLDER/timm.safetensors; do
        build/cpu/check_encoder dinov3-s $file FOLDER/tokens.safetensors
    done

Values are hashed (see make_fixtures.py; nothing is downloaded); the biases of queries, keys and values are zero, as
timm says those of the published files are. The tokens are facebook's, in float64.
"""
import argparse
import pathlib
import sys

import safetensors.torch
import timm
import torch
from timm.models.eva import checkpoint_filter_fn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from make_fixtures import encode, encoder_input, fill, nhwc, randomise


def facebook_model(checkout):
    sys.path.insert(0, checkout)
    from dinov3.models.vision_transformer import vit_small
    model = vit_small(pos_embed_rope_dtype="fp32", pos_embed_rope_rescale_coords=2, layerscale_init=1e-5,
                      norm_layer="layernormbf16", n_storage_tokens=4, mask_k_bias=True)
    model.init_weights()
    randomise(model)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.qkv.bias)
    return model.eval().requires_grad_(False)


def hugging_face_model(weights):
    """The weights under transformers' names; queries, keys and values are stacked in facebook's."""
    model = DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4)).double().eval().requires_grad_(False)
    names = (("storage_tokens", "embeddings.register_tokens"), ("patch_embed.proj.", "embeddings.patch_embeddings."),
             ("blocks.", "model.layer."), (".attn.", ".attention."), (".attention.proj.", ".attention.o_proj."),
             ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"), ("fc1", "up_proj"),
             ("fc2", "down_proj"))
    renamed = {}
    for name, value in weights.items():
        for theirs, here in names:
            name = name.replace(theirs, here)
        if name in ("cls_token", "mask_token"):
            renamed[f"embeddings.{name}"] = value.reshape(1, 1, -1)
        elif ".qkv." in name:
            for part, third in zip("qkv", value.chunk(3)):
                renamed[name.replace("qkv", f"{part}_proj")] = third
        else:
            renamed[name] = value
    wanted = model.state_dict()
    model.load_state_dict({name: renamed[name] for name in wanted})
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", help="of facebookresearch/dinov3")
    parser.add_argument("folder", type=pathlib.Path, help="folder to write to")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    image = fill("check_dinov3.image", (1, 3, 256, 256))
    pixels = encoder_input(image, 16)[1]
    facebook = facebook_model(arguments.checkout)
    weights = facebook.state_dict()
    tokens = facebook.forward_features(pixels)["x_norm_patchtokens"]
    timm_model = timm.create_model("vit_small_patch16_dinov3_qkvb.lvd1689m", pretrained=False).double().eval()
    timm_model.load_state_dict(checkpoint_filter_fn(dict(weights), timm_model))
    hugging_face = hugging_face_model(weights)

    def report(name, other):
        print(f"{name}: tokens differ from facebook's by {float((other - tokens).norm() / tokens.norm()):.1e}")

    report("timm", encode(timm_model.requires_grad_(False), pixels))
    report("transformers", hugging_face(pixels).last_hidden_state[:, 5:])
    facebook.rope_embed.periods.copy_(facebook.rope_embed.periods.bfloat16())
    report("facebook with the periods of its files, bfloat16", facebook.forward_features(pixels)["x_norm_patchtokens"])

    torch.save(facebook.float().state_dict(), arguments.folder / "facebook.pth")
    hugging_face.float().save_pretrained(arguments.folder / "hugging_face")
    safetensors.torch.save_file(timm_model.float().state_dict(), arguments.folder / "timm.safetensors")
    outputs = {"image": nhwc(image).float().contiguous(), "tokens": tokens.float()}
    safetensors.torch.save_file(outputs, arguments.folder / "tokens.safetensors")


if __name__ == "__main__":
    main()
