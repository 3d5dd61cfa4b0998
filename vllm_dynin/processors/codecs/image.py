"""`ImageCodec`: PIL images ↔ image codes, by the network a checkpoint's config names.

    codec = ImageCodec.from_pretrained("snu-aidas/magvitv2")
    codes = codec.encode([open_image("cat.jpg")], resolution=336)   # int64 [1, 441]
    image = codec.decode(codes, 336, 336)[0]

Codes carry no vocabulary offset; `tokens.Vocabulary` adds it.
Shape legend: B batch, K bits, H × W pixels, h × w = H/patch × W/patch codes, N = h·w, raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vllm_dynin.processors.codecs import lfq
from vllm_dynin.processors.codecs.image_io import resize_and_crop, to_images, to_pixels
from vllm_dynin.processors.codecs.loading import (
    float32_default,
    load_exact,
    read_config,
    read_safetensors,
    resolve_checkpoint,
    save_checkpoint,
)
from vllm_dynin.processors.codecs.magvit import Magvit, MagvitConfig
from vllm_dynin.processors.codecs.patch_threshold import PatchThreshold, PatchThresholdConfig
from vllm_dynin.processors.codecs.precision import full_float32

CodecConfig = MagvitConfig | PatchThresholdConfig
CodecNetwork = Magvit | PatchThreshold

# The field of config.json that names the network. The published checkpoint has no such field, and
# no architecture field at all: without it the network is the published one.
_KIND_FIELD = "image_codec"
_NETWORKS: dict[str, type[CodecNetwork]] = {"magvit": Magvit, "patch_threshold": PatchThreshold}


class ImageCodec:
    """Encode and decode images with one frozen network.

    Args:
        network: its `encoder` is kept in float32, because it ends in hard thresholds.
        device: where both halves run.
        decoder_dtype: float32 or bfloat16.
        images_per_pass: images that go through the network together. At 1 (the default) a result
            does not depend on what else is in the batch, to the bit, and memory is that of one
            image; more is faster on a GPU.

    Raises:
        ValueError: another dtype, or images_per_pass below 1.
    """

    def __init__(
        self,
        network: CodecNetwork,
        *,
        device: str | torch.device = "cpu",
        decoder_dtype: torch.dtype = torch.float32,
        images_per_pass: int = 1,
    ) -> None:
        if decoder_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"decoder_dtype={decoder_dtype} must be torch.float32 or bfloat16")
        if images_per_pass < 1:
            raise ValueError(f"images_per_pass={images_per_pass} must be at least 1")
        self.device = torch.device(device)
        self.decoder_dtype = decoder_dtype
        # PyTorch's CPU convolutions are faster with channels last (docs/codecs.md has the figure).
        self._memory_format = (
            torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        )
        self.network = network.eval().requires_grad_(False).to(self.device)
        halves: Any = (self.network.encoder, self.network.decoder)  # stubs lack memory_format
        for half, dtype in zip(halves, (torch.float32, decoder_dtype), strict=True):
            half.to(dtype=dtype, memory_format=self._memory_format)
        self.images_per_pass = images_per_pass

    @classmethod
    def from_config(cls, config: CodecConfig, *, seed: int = 0, **kwargs: Any) -> ImageCodec:
        """A codec with seeded random weights (the patch codec has none): for tests and benchmarks.

        Args:
            config: its class picks the network.
            seed: of the initial weights; the global generator is left as it was.
            kwargs: as for the constructor.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _build(config)
        return cls(network, **kwargs)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, *, revision: str | None = None, **kwargs: Any
    ) -> ImageCodec:
        """Load a checkpoint directory or Hub repository (safetensors only).

        Args:
            path_or_id: directory, or repository id such as `snu-aidas/magvitv2`.
            revision: of the repository.
            kwargs: as for the constructor.

        Raises:
            ValueError: not found, an unknown kind, or tensors that do not fit exactly.
        """
        directory = resolve_checkpoint(path_or_id, revision)
        network = _build(image_codec_config(directory))
        load_exact(network, read_safetensors(directory), optional=[r"quantize\."])
        if isinstance(network, PatchThreshold):
            network.check()
        return cls(network, **kwargs)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, as `from_pretrained` reads them.

        Args:
            directory: created where needed; the two files are overwritten.
            dtype: of the file, to save space; loading casts back to float32. By default each
                tensor is written as it is. The quantiser's tables are computed, so left out.
        """
        kind = next(k for k, network in _NETWORKS.items() if isinstance(self.network, network))
        config = {_KIND_FIELD: kind, **self.network.config.to_dict()}
        tensors = {
            name: tensor if dtype is None else tensor.to(dtype)
            for name, tensor in self.network.state_dict().items()
            if not name.startswith("quantize.")
        }
        save_checkpoint(Path(directory), config, tensors)

    @property
    def patch(self) -> int:
        """Pixels per code along each side (16 in the published model)."""
        return self.network.config.patch

    @property
    def num_codes(self) -> int:
        """Codes are 0 .. num_codes - 1 (8,192 in the published model)."""
        return 1 << self.network.config.num_bits

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of codes of an image of height × width pixels.

        Raises:
            ValueError: a side is not a positive multiple of `patch`.
        """
        if min(height, width) < 1 or height % self.patch or width % self.patch:
            raise ValueError(
                f"width={width}, height={height}: both must be positive multiples of {self.patch}"
            )
        return height // self.patch, width // self.patch

    def encode(self, images: Sequence[Image.Image], resolution: int | None = None) -> Tensor:
        """Encode RGB images.

        Args:
            images: RGB (see `image_io.open_image`), of one size unless `resolution` is given.
            resolution: scale and crop each image to this square first; by default sizes are kept.

        Returns:
            int64 [B, N] on the CPU, raster order.

        Raises:
            ValueError: sizes differ or are no multiples of `patch`, or an image is not RGB.
        """
        if resolution is not None:
            self.grid(resolution, resolution)
            images = [resize_and_crop(image, resolution, resolution) for image in images]
        return self.encode_pixels(to_pixels(images)).cpu()

    def encode_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode normalised pixels.

        Args:
            pixels_B3HW: float in [-1, 1], any device.

        Returns:
            int64 [B, N] on the codec's device.

        Raises:
            ValueError: not [B, 3, H, W] with sides that are multiples of `patch`, or not float.
        """
        parts = [lfq.codes_from_latents(part) for part in self._latents(pixels_B3HW)]
        return torch.cat(parts)

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """What `encode_pixels` thresholds: float32 [B, K, h, w]."""
        return torch.cat(list(self._latents(pixels_B3HW)))

    @torch.inference_mode()
    def _latents(self, pixels_B3HW: Tensor) -> list[Tensor]:
        if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1] != 3 or len(pixels_B3HW) == 0:
            raise ValueError(f"pixels of shape {list(pixels_B3HW.shape)} must be [B, 3, H, W]")
        if not pixels_B3HW.is_floating_point():
            raise ValueError(f"pixels of {pixels_B3HW.dtype} must be float in [-1, 1]")
        self.grid(pixels_B3HW.shape[2], pixels_B3HW.shape[3])
        with full_float32(self.device):
            return [
                self.network.encoder(
                    part.to(self.device, torch.float32, memory_format=self._memory_format)
                )
                for part in pixels_B3HW.split(self.images_per_pass)
            ]

    def decode(self, codes_BN: Tensor, height: int, width: int) -> list[Image.Image]:
        """Decode to RGB images.

        Args:
            codes_BN: int64 [B, N] with N = (height/patch)·(width/patch), raster order.
            height: of the images, in pixels.
            width: of the images, in pixels.

        Raises:
            ValueError: shape, size or a code does not fit.
        """
        pixels_B3HW = self.decode_pixels(codes_BN, height, width)
        return to_images(pixels_B3HW)

    @torch.inference_mode()
    def decode_pixels(self, codes_BN: Tensor, height: int, width: int) -> Tensor:
        """Decode to pixels, nominally in [-1, 1] but not clamped.

        Args:
            codes_BN: as for `decode`, any device.
            height: as for `decode`.
            width: as for `decode`.

        Returns:
            float32 [B, 3, height, width] on the codec's device.

        Raises:
            ValueError: shape, size or a code does not fit. Codes are never clamped into range: a
                text id that slipped in would silently become pixels.
        """
        rows, columns = self.grid(height, width)
        self._check_codes(codes_BN, rows, columns)
        parts = []
        for part in codes_BN.split(self.images_per_pass):
            signs_BKhw = lfq.signs_from_codes(
                part.to(self.device, torch.int64), self.network.config.num_bits, rows, columns
            )
            signs_BKhw = signs_BKhw.to(self.decoder_dtype, memory_format=self._memory_format)
            parts.append(self.network.decoder(signs_BKhw).float())
        return torch.cat(parts)

    def _check_codes(self, codes_BN: Tensor, rows: int, columns: int) -> None:
        is_integer = not (codes_BN.is_floating_point() or codes_BN.dtype == torch.bool)
        if codes_BN.ndim != 2 or codes_BN.shape[1] != rows * columns or not is_integer:
            raise ValueError(
                f"codes are {codes_BN.dtype} {list(codes_BN.shape)}; {rows}×{columns} codes an "
                f"image need integers of shape [B, {rows * columns}]"
            )
        if len(codes_BN) == 0:
            raise ValueError("there are no codes to decode (batch of 0)")
        low, high = int(codes_BN.min()), int(codes_BN.max())
        if low < 0 or high >= self.num_codes:
            raise ValueError(
                f"codes span {low}..{high}; they must lie in 0..{self.num_codes - 1} (subtract the "
                "vocabulary offset first)"
            )


def image_codec_config(directory: Path) -> CodecConfig:
    """Sizes of the image codec in a checkpoint directory, without its weights.

    Raises:
        ValueError: an unknown kind, or fields that do not describe one.
    """
    return _parse_config(read_config(directory), directory)


def _build(config: CodecConfig) -> CodecNetwork:
    network = next(n for n in _NETWORKS.values() if isinstance(config, n.config_class))
    with float32_default():
        return network(config)  # type: ignore[arg-type]


def _parse_config(fields: dict[str, Any], directory: Path) -> CodecConfig:
    if _KIND_FIELD not in fields:
        return MagvitConfig()
    kind = fields.pop(_KIND_FIELD)
    if kind not in _NETWORKS:
        raise ValueError(
            f"{directory}: {_KIND_FIELD}={kind!r} is unknown; known are {', '.join(_NETWORKS)}"
        )
    try:
        return _NETWORKS[kind].config_class.from_dict(fields)
    except TypeError as error:
        raise ValueError(f"{directory}: config.json does not describe a {kind}: {error}") from error
