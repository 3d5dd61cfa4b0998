"""MAGVIT and the patch codec against slow, literal second statements in float64.

The oracle works on the state dict by name and follows the graph of the tokenizers specification
§1.2-1.5: explicit convolution taps, group norm from its formula, attention as loops.
"""

import math

import pytest
import torch

from vllm_dynin.processors.codecs import magvit
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.magvit import Attention, Magvit, MagvitConfig
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig

# Odd on purpose: encoder and decoder differ, levels differ, non-square.
CONFIG = MagvitConfig(
    channels=32,
    encoder_multipliers=(1, 2),
    encoder_blocks=(1, 2),
    decoder_multipliers=(2, 3),
    decoder_blocks=(2, 1),
    num_bits=5,
    norm_groups=16,
)


def randomised(network):
    """Parameters moved off their initial values: norms start as the identity, which hides them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.2 * noise)
    return network


class Oracle:
    def __init__(self, network):
        self.tensors = {k: v.double() for k, v in network.state_dict().items()}
        self.config = network.config

    def conv(self, x, name, stride=1, pads=(1, 1, 1, 1)):
        """Sum over taps of shifted inputs; pads are left, right, top, bottom."""
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        left, right, top, bottom = pads
        channels, height, width = x.shape
        padded = torch.zeros(channels, height + top + bottom, width + left + right).double()
        padded[:, top : top + height, left : left + width] = x
        rows = (padded.shape[1] - weight.shape[2]) // stride + 1
        columns = (padded.shape[2] - weight.shape[3]) // stride + 1
        y = bias[:, None, None].repeat(1, rows, columns)
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                part = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
                y += (weight[:, :, i, j] @ part.reshape(channels, -1)).view(-1, rows, columns)
        return y

    def pointwise(self, x, name):
        return self.conv(x, name, pads=(0, 0, 0, 0))

    def norm(self, x, name):
        y, size = x.clone(), x.shape[0] // self.config.norm_groups
        for start in range(0, x.shape[0], size):
            group = x[start : start + size]
            mean = group.sum() / group.numel()
            variance = ((group - mean) ** 2).sum() / group.numel()
            y[start : start + size] = (group - mean) / math.sqrt(variance + 1e-6)
        scale, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return y * scale[:, None, None] + shift[:, None, None]

    @staticmethod
    def swish(x):
        return x / (1 + torch.exp(-x))

    def block(self, x, name):
        y = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        y = self.conv(self.swish(self.norm(y, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self.tensors:
            x = self.pointwise(x, f"{name}.nin_shortcut")
        return x + y

    def attention(self, x, name):
        channels, height, width = x.shape
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.pointwise(h, f"{name}.{part}").reshape(channels, -1) for part in "qkv")
        out = torch.zeros_like(q)
        for i in range(height * width):
            scores = [float(q[:, i] @ k[:, j]) * channels**-0.5 for j in range(height * width)]
            exps = [math.exp(score - max(scores)) for score in scores]
            for j in range(height * width):
                out[:, i] += exps[j] / sum(exps) * v[:, j]
        return x + self.pointwise(out.view(channels, height, width), f"{name}.proj_out")

    def middle(self, x, half):
        x = self.attention(self.block(x, f"{half}.mid.block_1"), f"{half}.mid.attn_1")
        return self.block(x, f"{half}.mid.block_2")

    def encode(self, x):
        x = self.conv(x, "encoder.conv_in")
        for level, blocks in enumerate(self.config.encoder_blocks):
            for i in range(blocks):
                x = self.block(x, f"encoder.down.{level}.block.{i}")
            if level < len(self.config.encoder_blocks) - 1:
                name = f"encoder.down.{level}.downsample.conv"
                x = self.conv(x, name, stride=2, pads=(0, 1, 0, 1))
        x = self.swish(self.norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.pointwise(self.conv(x, "encoder.conv_out"), "encoder.quant_conv")

    def decode(self, x):
        x = self.conv(self.pointwise(x, "decoder.post_quant_conv"), "decoder.conv_in")
        x = self.middle(x, "decoder")
        for level in reversed(range(len(self.config.decoder_blocks))):
            for i in range(self.config.decoder_blocks[level]):
                x = self.block(x, f"decoder.up.{level}.block.{i}")
            if level > 0:
                doubled = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
                x = self.conv(doubled, f"decoder.up.{level}.upsample.conv")
        x = self.swish(self.norm(x, "decoder.norm_out"))
        return self.conv(x, "decoder.conv_out")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return randomised(Magvit(CONFIG))


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 6, 10, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def test_encoder_equals_the_oracle_in_float64(network, pixels):
    double = Magvit(CONFIG).double()
    double.load_state_dict(network.state_dict())
    ours = double.encoder(pixels.double())
    for b in range(2):
        expected = Oracle(network).encode(pixels[b].double())
        assert torch.allclose(ours[b], expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_decoder_equals_the_oracle_in_float64(network):
    double = Magvit(CONFIG).double()
    double.load_state_dict(network.state_dict())
    signs = torch.randint(0, 2, (2, 5, 3, 5), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    ours = double.decoder(signs.double())
    for b in range(2):
        expected = Oracle(network).decode(signs[b].double())
        assert torch.allclose(ours[b], expected, rtol=0, atol=1e-9)


def test_codec_in_float32_equals_the_oracle(network, pixels):
    codec = ImageCodec(network)
    codes = codec.encode_pixels(pixels)
    for b in range(2):
        latents = Oracle(network).encode(pixels[b].double())
        bits = (latents > 0).long()
        # 1e-4: float32 rounding through 20 layers; nothing this close to the threshold is judged
        is_clear = (latents.abs() > 1e-4).all(0).flatten()
        expected = sum(bits[k] * 2 ** (4 - k) for k in range(5)).flatten()
        assert is_clear.float().mean() > 0.9
        assert torch.equal(codes[b][is_clear], expected[is_clear])
    decoded = codec.decode_pixels(codes, 6, 10)
    for b in range(2):
        signs = torch.stack([(codes[b] >> (4 - k) & 1) * 2 - 1 for k in range(5)]).view(5, 3, 5)
        expected = Oracle(network).decode(signs.double())
        assert torch.allclose(decoded[b].double(), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 7, 15, 16, 1000])
def test_attention_in_parts_equals_the_oracle(rows, monkeypatch):
    """Any number of query rows at once gives the loop's result, the last part being shorter."""
    torch.manual_seed(0)
    layer = randomised(Attention(32, 16).double())
    oracle = Oracle.__new__(Oracle)
    oracle.tensors = {f"a.{k}": v for k, v in layer.state_dict().items()}
    oracle.config = CONFIG
    x = torch.randn(32, 3, 5, dtype=torch.float64)
    monkeypatch.setattr(magvit, "_ATTENTION_ROWS", rows)
    assert torch.allclose(layer(x[None])[0], oracle.attention(x, "a"), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "cells"), [(1, 3), (3, 2), (3, 1)])
def test_patch_codec_against_plain_python(channels, cells):
    config = PatchThresholdConfig(cell=2, cells=cells, channels=channels)
    codec, side = ImageCodec.from_config(config), 2 * cells
    pixels = (
        torch.rand(2, 3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    codes = codec.encode_pixels(pixels)
    values = pixels.tolist()
    for b in range(2):
        for row in range(2):
            for column in range(3):
                bits = ""
                for c in range(channels):
                    planes = range(3) if channels == 1 else [c]
                    for y in range(row * side, row * side + side, 2):
                        for x in range(column * side, column * side + side, 2):
                            cell = [
                                values[b][p][y + dy][x + dx]
                                for p in planes
                                for dy in (0, 1)
                                for dx in (0, 1)
                            ]
                            bits += "1" if sum(cell) / len(cell) > -0.0625 else "0"
                assert codes[b, row * 3 + column] == int(bits, 2)
