#!/bin/sh
# `make demo`: the whole recipe in the miniature world, from nothing to a table and a picture.
# Usage: sh dev/demo.sh FOLDER, with pretrain in it (build/cpu, build/gpu); the other programs stand in the root.
# Prepares the encoder and the VGG (kept in runs/mini for the next time), trains the three stages, measures each of them; then
# trains a LightningDiT on the latents of the result and draws with it, one class a row.
# The images are Fashion-MNIST where it is installed (Debian: dataset-fashion-mnist), else drawn shapes.
set -eu
echo "== the miniature world: a ViT (for DINOv2) and a VGG (for LPIPS)"
"${1:-build/cpu}/pretrain"
echo
echo "== stage 1, latent alignment: the encoder is frozen, adapter and decoder learn"
./train_tokenizer -stage 1
echo
echo "== stage 2, perceptual alignment: all learn, the semantic loss holds the latent"
./train_tokenizer -stage 2
echo
echo "== stage 3, decoder refinement: the decoder alone"
./train_tokenizer -stage 3
echo
echo "== measured on held-out images (miniature world)"
./eval -out runs/mini/demo.png \
    -tokenizers runs/mini/stage1.safetensors,runs/mini/stage2.safetensors,runs/mini/stage3.safetensors
echo
echo "== the latents of 10,000 training images"
./train_dit -extract 1
echo
echo "== LightningDiT learns to draw them"
./train_dit
echo
echo "== and draws: one class a row (miniature world)"
./sample -dit runs/mini/dit.safetensors -tokenizer runs/mini/stage3.safetensors -steps 30 -out runs/mini/samples.png
