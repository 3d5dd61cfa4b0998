"""Both codecs on a device against the same network in float64 on a CPU."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers.devices import DEVICES, on_device
from PIL import Image

from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.image_io import to_pixels
from vllm_dynin.processors.codecs.magvit import MagvitConfig
from vllm_dynin.processors.codecs.precision import full_float32
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnits, SpeechToUnitsConfig
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeech, UnitsToSpeechConfig

# Three levels of the published graph's five, and a quarter of its channels.
NARROW = MagvitConfig(
    channels=32,
    encoder_multipliers=(1, 2, 4),
    encoder_blocks=(1, 1, 1),
    decoder_multipliers=(1, 2, 4),
    decoder_blocks=(1, 1, 1),
)


def picture(size: int) -> Image.Image:
    """Two gradients over a flat half: documents are flat, and there float32 once went wrong."""
    values = np.linspace(0, 255, size)
    pixels = np.stack(np.broadcast_arrays(values[:, None], values[None], 128.0), -1).copy()
    pixels[size // 2 :] = 250
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_image_codec(device) -> None:
    """Latents as in float64; codes the same wherever no latent is at the threshold."""
    where = on_device(device)
    network = ImageCodec.from_config(NARROW, seed=5).network.float()
    exact = copy.deepcopy(network).double()
    codec = ImageCodec(copy.deepcopy(network), device=where)
    pixels = to_pixels([picture(64)])
    with torch.inference_mode():
        expected = exact.encoder(pixels.double())
    found = codec.latents(pixels).cpu()
    scale = float(expected.abs().max())
    # Rounding of float32 through 20 convolutions; TF32 would be 1e-3 of the scale.
    assert float((found.double() - expected).abs().max()) < 1e-4 * scale
    bits = (expected > 0).flatten(2).long()
    codes = (bits * 2 ** torch.arange(bits.shape[1] - 1, -1, -1)[:, None]).sum(1)
    certain = (expected.flatten(2).abs() > 2e-4 * scale).all(1)
    assert certain.float().mean() > 0.9
    assert torch.equal(codec.encode([picture(64)])[certain], codes[certain])
    signs = (expected > 0).double() * 2 - 1
    with torch.inference_mode():
        image = exact.decoder(signs)
    decoded = codec.decode_pixels(codes, 64, 64).cpu().double()
    # Half a level of 8 bits in [-1, 1], for an image that fills it.
    assert float((decoded - image).abs().max()) < float(image.abs().max()) / 255


@pytest.mark.gpu
def test_image_codec_at_its_published_size() -> None:
    """The whole published graph at 336 × 336, random weights: codes as on the CPU, and the time."""
    where = on_device("cuda")
    here = ImageCodec.from_config(MagvitConfig(), seed=5)
    there = ImageCodec(copy.deepcopy(here.network), device=where)
    codes = there.encode([picture(336)]).cpu()
    assert (codes == here.encode([picture(336)])).float().mean() > 0.99
    for name, call in {
        "encode": lambda: there.encode([picture(336)]),
        "decode": lambda: there.decode_pixels(codes, 336, 336),
    }.items():
        call()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        print(f"image {name} 336x336 float32 {start.elapsed_time(stop):.1f} ms")


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, of a size that lets the input through."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (1.5 / math.sqrt(parameter[0].numel())))
            else:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


@pytest.mark.parametrize("device", DEVICES)
def test_speech_encoder(device) -> None:
    where = on_device(device)
    encoder = randomised(SpeechToUnits(SpeechToUnitsConfig.tiny()))
    rng = np.random.default_rng(3)
    sound = torch.from_numpy(rng.standard_normal(48_000)).float()
    expected = copy.deepcopy(encoder).double()([sound.double()])[0]
    with full_float32(where):
        found = encoder.to(where)([sound.to(where)])[0].cpu()
    assert found.shape == expected.shape and expected.unique().numel() > 5
    # A digit at its threshold may fall either way.
    assert (found == expected).float().mean() > 0.97


@pytest.mark.parametrize("device", DEVICES)
def test_speech_decoder(device) -> None:
    where = on_device(device)
    config = UnitsToSpeechConfig.tiny()
    decoder = randomised(UnitsToSpeech(config))
    units = torch.arange(20) * 7 % config.num_units
    exact = copy.deepcopy(decoder).double()
    style = torch.randn(1, config.style_channels, 1, generator=torch.Generator().manual_seed(1))
    quiet = {"duration_noise_scale": 0.0, "prior_noise_scale": 0.0}
    expected = exact(units, style.double(), **quiet)
    with full_float32(where):
        found = decoder.to(where)(units.to(where), style.to(where), **quiet).cpu()
    assert found.shape == expected.shape and float(expected.abs().max()) > 0.05
    assert float((found.double() - expected).abs().max()) < 1e-3 * float(expected.abs().max())
