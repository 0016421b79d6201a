#!/bin/sh
# `make demo`: the whole recipe in the miniature world, from nothing to a table and a picture.
# Prepares the encoder and the VGG (kept in runs/mini for the next time), trains the three stages, measures each of them.
set -eu
data=fashion-mnist
[ -f /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] || data=shapes

echo "== the miniature world: a ViT (for DINOv2) and a VGG (for LPIPS), trained on $data"
build/cpu/pretrain -data $data
echo
echo "== stage 1, latent alignment: the encoder is frozen, adapter and decoder learn"
./train_tokenizer -stage 1 -data $data
echo
echo "== stage 2, perceptual alignment: all learn, the semantic loss holds the latent"
./train_tokenizer -stage 2 -data $data
echo
echo "== stage 3, decoder refinement: the decoder alone"
./train_tokenizer -stage 3 -data $data
echo
echo "== measured on held-out images (miniature world)"
./eval -tokenizers runs/mini/stage1.safetensors,runs/mini/stage2.safetensors,runs/mini/stage3.safetensors -out runs/mini/demo.png
