#!/bin/sh
# Makes the trained miniature that comes with the repository: miniature/tokenizer.safetensors and miniature/dit.safetensors, from
# which `./sample` draws without any training. About 20 minutes on two cores; needs Debian's dataset-fashion-mnist (`make deps`).
#
#     make CPU=1 && make CPU=1 build/cpu/pretrain && sh dev/miniature.sh [STEPS]
#
# As `make demo` (seed 1), but every run is longer: the ViT's, the three stages (the preset's own steps), the DiT's, which sees
# 20,000 training images. Both are exported as 16-bit floats. Another processor rounds otherwise, so the files come out alike, not
# the same.
set -eu
out=runs/miniature
steps=${1:-2000}
mkdir -p "$out" miniature
build/cpu/pretrain -data garments -out "$out" -vit_steps 5000
weights="-encoder_weights $out/encoder.safetensors -lpips_weights $out/vgg.safetensors"
for stage in 1 2 3; do
    # shellcheck disable=SC2086
    ./train_tokenizer -stage "$stage" -data garments -out "$out" $weights
done
./train_tokenizer -stage 3 -out "$out" -export miniature/tokenizer.safetensors -export_type f16
./train_dit -extract 1 -data garments -images 20000 -tokenizer "$out/stage3.safetensors" -latents "$out/latents"
./train_dit -steps "$steps" -tokenizer "$out/stage3.safetensors" -latents "$out/latents" -out "$out"
./train_dit -out "$out" -export miniature/dit.safetensors -export_type f16
cp "$out/vgg.safetensors" miniature/vgg.safetensors
./sample -out "$out/samples.png"
