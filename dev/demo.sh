#!/bin/sh
# `make demo`: the whole recipe in the miniature world, from nothing to pictures and a table.
# Usage: sh dev/demo.sh FOLDER [DATA]: with pretrain in FOLDER (build/cpu, build/gpu); the other programs stand in the root. DATA is
# what -data takes, such as garments:FOLDER with the files of Fashion-MNIST.
# Prepares the encoder and the VGG (kept in runs/mini for the next time), trains the three stages; then trains a LightningDiT on
# the latents of the result and draws with it, one class a row; and measures all of it. Its runs are shorter than the presets'
# (600, 800, 400 steps of 32 and 1,500 of 128), in small batches, which learn more in a minute: all of it takes about six on two cores.
# The images are garments: Fashion-MNIST's (Debian: dataset-fashion-mnist), in drawn colours on drawn grounds. Where it is not
# installed they are drawn shapes.
set -eu
out=runs/mini
data=${2:-auto}
stages="-steps 200,500,200 -batch 16"
echo "== the miniature world: a ViT (for DINOv2) and a VGG (for LPIPS and Inception)"
"${1:-build/cpu}/pretrain" -data "$data" -vit_steps 1200 -vgg_steps 250
echo
echo "== stage 1, latent alignment: the encoder is frozen, adapter and decoder learn"
# shellcheck disable=SC2086
./train_tokenizer -stage 1 $stages -data "$data"
echo
echo "== stage 2, perceptual alignment: all learn, the semantic loss holds the latent"
# shellcheck disable=SC2086
./train_tokenizer -stage 2 $stages -data "$data" -w_sem 0.3 # a lighter hold than 1: in so few steps colours come sooner
echo
echo "== stage 3, decoder refinement: the decoder alone"
# shellcheck disable=SC2086
./train_tokenizer -stage 3 $stages -data "$data"
echo
echo "== the latents of 10,000 training images"
./train_dit -extract 1 -data "$data"
echo
echo "== LightningDiT learns to draw them"
./train_dit -steps 1000 -batch 32 -lr 2e-3 -ema 0.99 -grid_every 0
echo
echo "== and draws: one class a row (miniature world)"
./sample -dit $out/dit.safetensors -tokenizer $out/stage3.safetensors -steps 30 -out $out/samples.png
echo
echo "== measured: reconstructions and latents of held-out images, samples against training images (miniature world)"
./eval -recon -probe -gen -tokenizer $out/stage1.safetensors,$out/stage2.safetensors,$out/stage3.safetensors \
    -dit $out/dit.safetensors -features $out/vgg.safetensors -lpips_weights $out/vgg.safetensors -reference_images 10000 -out $out/eval
