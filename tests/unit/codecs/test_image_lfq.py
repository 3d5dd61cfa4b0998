import pytest
import torch

from vllm_dynin.processors.codecs import lfq


def signs_of(text):
    return [1.0 if c == "+" else -1.0 for c in text]


# tokenizers specification §7.1, channel 0 first
VECTORS = {
    0: "-------------",
    1: "------------+",
    2: "-----------+-",
    4096: "+------------",
    4097: "+-----------+",
    5461: "+-+-+-+-+-+-+",
    2730: "-+-+-+-+-+-+-",
    8191: "+++++++++++++",
}


@pytest.mark.parametrize("code", VECTORS)
def test_hand_computed_vectors(code):
    signs = lfq.signs_from_codes(torch.tensor([[code]]), 13, 1, 1)
    assert signs.dtype == torch.float32
    assert signs.flatten().tolist() == signs_of(VECTORS[code])
    assert lfq.codes_from_latents(signs).tolist() == [[code]]


def plain_code(vector):
    """A second statement: the bits as text, read as a binary number."""
    return int("".join("1" if value > 0 else "0" for value in vector), 2)


def test_all_codes_against_plain_python_and_back():
    table = lfq.codebook(13)
    assert table.shape == (8192, 13)
    assert [plain_code(row) for row in table.tolist()] == list(range(8192))
    codes = torch.arange(8192).view(2, 4096)
    signs = lfq.signs_from_codes(codes, 13, 64, 64)
    assert torch.equal(lfq.codes_from_latents(signs), codes)


@pytest.mark.parametrize("num_bits", [1, 4, 13, 18])
def test_random_latents_against_plain_python(num_bits):
    generator = torch.Generator().manual_seed(num_bits)
    latents = torch.randn(2, num_bits, 3, 5, generator=generator)
    codes = lfq.codes_from_latents(latents)
    assert codes.dtype == torch.int64 and codes.shape == (2, 15)
    for b in range(2):
        for row in range(3):
            for column in range(5):
                expected = plain_code(latents[b, :, row, column].tolist())
                assert codes[b, row * 5 + column] == expected


@pytest.mark.parametrize(
    ("value", "bit"),
    [
        (0.0, 0),
        (-0.0, 0),
        (float("nan"), 0),
        (float("inf"), 1),
        (float("-inf"), 0),
        (1e-30, 1),
        (-1e-30, 0),
        (1e-45, 1),  # the smallest denormal
        (2.0**26, 1),  # the original's straight-through sum is 0 here
    ],
)
def test_the_threshold_is_strict(value, bit):
    latents = torch.zeros(1, 13, 1, 1)
    latents[0, 3] = value
    assert lfq.codes_from_latents(latents).item() == 512 * bit


def test_large_half_precision_latents_keep_their_bit():
    latents = torch.full((1, 13, 1, 1), 1024.0, dtype=torch.bfloat16)
    assert lfq.codes_from_latents(latents).item() == 8191


def test_raster_order():
    latents = torch.full((1, 13, 2, 3), -1.0)
    latents[0, 12, 1, 2] = 1.0
    assert lfq.codes_from_latents(latents).tolist() == [[0, 0, 0, 0, 0, 1]]


def test_weights_have_channel_0_as_the_most_significant_bit():
    assert lfq.bit_weights(13).tolist() == [2**k for k in range(12, -1, -1)]
