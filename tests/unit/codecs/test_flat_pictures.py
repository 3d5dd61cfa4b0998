"""Group norm in float32 where values vary little around a large mean: documents, white pages.

PyTorch's kernel for channels last loses the variance there. A comparison in float64 does not see
it, because float64 has room for E[x²] − E[x]².
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from vllm_dynin.processors.codecs.group_norm import GroupNorm
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.image_io import to_pixels
from vllm_dynin.processors.codecs.magvit import MagvitConfig

LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Channels and sides of the published network at 336 pixels, and odd ones.
SIZES = [(256, 168, 168), (512, 21, 21), (32, 7, 5), (64, 1, 3)]
CASES = [((128, 336, 336), 3, 0.01)] + [
    (size, *numbers) for size in SIZES for numbers in ((3, 0.01), (-40, 0.2), (0, 1), (0.5, 0))
]


def norm(channels):
    layer = GroupNorm(32, channels, eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["first", "last"])
@pytest.mark.parametrize(("size", "mean", "spread"), CASES)
def test_group_norm(size, mean, spread, layout):
    generator = torch.Generator().manual_seed(1)
    x = mean + spread * torch.randn(1, *size, generator=generator)
    x[:, ::3] += 3 * spread  # whole channels of another level
    x = x.to(memory_format=layout)
    layer = norm(size[0])
    expected = F.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), 1e-6)
    with torch.inference_mode():
        for swish in (False, True):
            result = layer(x, swish=swish)
            wanted = F.silu(expected) if swish else expected
            assert result.is_contiguous(memory_format=layout)
            assert (result - wanted).abs().max() < 1e-3 * max(1, abs(mean) * 1e-2 / (spread or 1))
    if size[0] < 128:  # where gradients are wanted another kernel is used
        result = layer(x.requires_grad_(), swish=True)
        assert torch.allclose(result, F.silu(expected).float(), atol=1e-2)


def test_group_norm_of_a_batch_and_of_bfloat16():
    layer = norm(64)
    x = 3 + 0.1 * torch.randn(3, 64, 33, 17, generator=torch.Generator().manual_seed(2))
    x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        each = torch.cat([layer(part.clone()) for part in x.split(1)])
        assert torch.allclose(layer(x), each, atol=1e-5)
        half = x.bfloat16()
        wanted = layer(half.float())
        layer.bfloat16()
        assert layer(half).dtype == torch.bfloat16
        assert (layer(half).float() - wanted).abs().max() < 0.05


def page(side):
    """A white page with two lines of writing."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.text((side // 8, side // 8), "Dear Sir or Madam,", fill="black")
    draw.text((side // 8, side // 4), "the meeting is at ten.", fill=(40, 40, 60))
    return image


def pictures(side):
    yield "white page", Image.new("RGB", (side, side), "white")
    yield "letter", page(side)
    yield "flat grey", Image.new("RGB", (side, side), (200, 201, 202))
    noise = np.random.default_rng(0).integers(252, 256, (side, side, 3), dtype=np.uint8)
    yield "scan of a white page", Image.fromarray(noise)


@pytest.mark.parametrize(
    ("name", "picture"), list(pictures(128)), ids=[name for name, _ in pictures(128)]
)
def test_codes_of_flat_pictures(name, picture, published):
    """The published network, random weights: latents as with channels first, and so the codes."""
    codec, first = published
    pixels = to_pixels([picture])
    with torch.inference_mode():
        wanted = first(pixels.contiguous())
    latents = codec.latents(pixels)
    # Latents are of about 0.2. With PyTorch's kernel they differ by 5e-4 to 2e-3 on the flat ones.
    assert (latents - wanted).abs().max() < 5e-5
    assert ((latents > 0) == (wanted > 0)).all()


@pytest.fixture(scope="module")
def published():
    """Its codec, with channels last on a CPU, and the same encoder with channels first."""
    config = MagvitConfig()
    codec = ImageCodec.from_config(config)
    first = ImageCodec.from_config(config).network.encoder.to(memory_format=torch.contiguous_format)
    return codec, first
