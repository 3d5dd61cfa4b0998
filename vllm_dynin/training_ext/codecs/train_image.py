"""Train a small MAGVIT on pictures, in about a minute on one core.

    python -m vllm_dynin.training_ext.codecs.train_image DIRECTORY_WITH_PICTURES OUT

For tests and demos: it shows the real graph, quantiser and file format at work on real
photographs. The published tokenizer is frozen and never trained here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.image_io import open_image, to_pixels
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.codecs.loading import float32_default
from vllm_dynin.processors.codecs.magvit import Magvit, MagvitConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; the same config, pictures and thread count give the same weights.

    Args:
        steps: optimiser steps.
        batch_size: crops per step.
        crop: side of a crop in pixels, a multiple of the network's patch.
        learning_rate: peak, reached after a tenth of the steps and then lowered to zero.
        commitment: weight of the pull of latents towards their signs.
        diversity: weight of the pull of bits towards even odds and independence of one another;
            without it nearly every patch gets the same code.
        seed: of weights and crops.

    Raises:
        ValueError: a number is not positive.
    """

    steps: int = 1000
    batch_size: int = 8
    crop: int = 32
    learning_rate: float = 3e-3
    commitment: float = 0.05
    diversity: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.crop, self.learning_rate) <= 0:
            raise ValueError(f"{self!r}: all sizes and the learning rate must be positive")


def train(images: Sequence[Image.Image], network: MagvitConfig, config: TrainConfig) -> Magvit:
    """Fit a new network to random crops of the images: squared error plus commitment.

    The gradient passes the quantiser straight through.

    Args:
        images: RGB, each at least `crop` pixels on both sides.
        network: sizes.
        config: the run.

    Raises:
        ValueError: no image, an image is too small, or the crop does not fit the patch.
    """
    if not images or min(min(image.size) for image in images) < config.crop:
        raise ValueError(f"training needs images of at least {config.crop}×{config.crop} pixels")
    if config.crop % network.patch:
        raise ValueError(f"crop={config.crop} must be a multiple of the patch {network.patch}")
    with torch.random.fork_rng(devices=[]), float32_default():
        torch.manual_seed(config.seed)
        model = Magvit(network)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.1
        )
        for crops_B3HW in _crops(images, config):
            latents = model.encoder(crops_B3HW)
            signs = torch.where(latents > 0, 1.0, -1.0)
            soft = torch.tanh(latents)  # its slope stops latents that are far from the threshold
            decoded = model.decoder(soft + (signs - soft).detach())
            loss = F.mse_loss(decoded, crops_B3HW)
            loss = loss + config.commitment * F.mse_loss(soft, signs)
            loss = loss + config.diversity * _dependence(latents)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model


def _dependence(latents_BKhw: Tensor) -> Tensor:
    """Mean square of the (softened) bits' means and products of pairs."""
    bits_PK = torch.tanh(latents_BKhw).movedim(1, -1).flatten(0, -2)
    bits_PK = torch.cat([torch.ones_like(bits_PK[:, :1]), bits_PK], dim=1)
    moments = bits_PK.T @ bits_PK / len(bits_PK)
    return (moments - torch.diag(moments.diag())).square().mean()


def _crops(images: Sequence[Image.Image], config: TrainConfig) -> Iterator[Tensor]:
    """Batches [B, 3, crop, crop]; an image is drawn by its area, then varied."""
    pixels = [to_pixels([image])[0] for image in images]
    areas = torch.tensor([float(image.shape[1] * image.shape[2]) for image in pixels])
    for _ in range(config.steps):
        crops = []
        for index in torch.multinomial(areas, config.batch_size, replacement=True).tolist():
            _, height, width = pixels[index].shape
            top = int(torch.randint(height - config.crop + 1, ()))
            left = int(torch.randint(width - config.crop + 1, ()))
            crop = pixels[index][:, top : top + config.crop, left : left + config.crop]
            crop = crop.flip(2) if torch.rand(()) < 0.5 else crop
            gain, shift = torch.rand(2).tolist()
            crops.append(((0.5 + gain) * crop + shift - 0.5).clamp(-1, 1))
        yield torch.stack(crops)


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB images of one size, in dB."""
    error = F.mse_loss(to_pixels([image]), to_pixels([other])).item()
    return float(10 * torch.log10(torch.tensor(4 / max(error, 1e-12))))


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="train_image", description="Train a small MAGVIT.")
    parser.add_argument("pictures", type=Path, help="directory of pictures to train on")
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    options = parser.parse_args(arguments)
    images, skipped = [], []
    for path in sorted(p for p in options.pictures.iterdir() if p.is_file()):
        try:
            images.append(open_image(path))
        except MediaError:
            skipped.append(path.name)
    print(f"{len(images)} pictures; left out as no pictures: {', '.join(skipped) or 'none'}")
    start = time.perf_counter()
    try:
        config = TrainConfig(steps=options.steps, seed=options.seed)
        model = train(images, MagvitConfig.toy(), config)
    except ValueError as error:
        parser.error(str(error))
    ImageCodec(model).save_pretrained(options.out, dtype=torch.float16)
    print(f"{options.steps} steps in {time.perf_counter() - start:.0f} s; wrote {options.out}")


if __name__ == "__main__":
    main()
