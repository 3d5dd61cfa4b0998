"""Philox: the published vectors, and three implementations that agree."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is imported

from helpers.compile_only import compile_only

from vllm_dynin.kernels import philox as ops
from vllm_dynin.kernels.philox import philox, philox_uniform, philox_uniform_ref

# Counter, key, words: kat_vectors of Random123 1.14, philox4x32-10.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SLOTS = [0, 5, 2**31 + 3, 77, 2**32 - 1]
PLACES = [(0, 0, 0), (5, 1, 16), (-1, 2**32 - 1, 2**31), (2**63 + 9, 3, 0xF0000001)]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_published_vectors(counter, key, words):
    found = philox(*(torch.tensor([word]) for word in counter), *key)
    assert tuple(int(word) for word in found) == words


def test_a_draw_is_the_word_of_its_column():
    """Section by section what the module promises: groups of four columns, halves of the seed."""
    found = philox_uniform_ref(torch.tensor([7]), 6, seed=3 + (9 << 32), step=5, place=11)
    for group, columns in ((0, range(4)), (1, range(4, 6))):
        words = philox(*(torch.tensor([n]) for n in (group, 7, 5, 11)), 3, 9)
        for column in columns:
            assert float(found[0, column]) == (int(words[column % 4]) + 0.5) / 2**32


def in_triton(slots, num_columns, *, seed, **options):
    from vllm_dynin.kernels.philox_triton import philox_uniform_triton

    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    return philox_uniform_triton(slots, num_columns, key=key, **options)


@pytest.mark.parametrize("form", [philox_uniform, in_triton])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_columns", [1, 3, 4, 1025, 4098])
def test_every_form_equals_the_definition(form, num_columns, dtype):
    for slots in (torch.tensor(SLOTS), torch.tensor([], dtype=torch.int64)):
        for seed, step, place in PLACES:
            options = {"seed": seed, "step": step, "place": place, "dtype": dtype}
            expected = philox_uniform_ref(slots, num_columns, **options)
            found = form(slots, num_columns, **options)
            assert found.dtype == dtype and found.shape == (len(slots), num_columns)
            assert torch.equal(found, expected)


def test_chunks_change_nothing(monkeypatch):
    options = {"seed": 4, "step": 2, "place": 3}
    whole = philox_uniform(torch.tensor(SLOTS), 1000, **options)
    monkeypatch.setattr(ops, "_CHUNK", 37)
    assert torch.equal(philox_uniform(torch.tensor(SLOTS), 1000, **options), whole)


def test_rows_of_the_whole_vocabulary():
    found = philox_uniform(torch.tensor([3, 9]), 138_752, seed=1, step=0, place=0)
    assert 0 < float(found.min()) < 2e-4 and 1 - 2e-4 < float(found.max()) < 1
    # 64 bins of 2 x 138,752 draws; 63 degrees of freedom, p = 1e-6.
    counts = np.histogram(found.numpy(), bins=64, range=(0, 1))[0]
    assert ((counts - 4336) ** 2 / 4336).sum() < 126


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_draws_the_same():
    for seed, step, place in PLACES:
        options = {"seed": seed, "step": step, "place": place}
        expected = philox_uniform(torch.tensor(SLOTS), 126_349, **options)
        found = philox_uniform(torch.tensor(SLOTS, device="cuda"), 126_349, **options)
        assert torch.equal(found.cpu(), expected)


def test_the_kernel_compiles_for_gpus():
    script = """
import torch
from vllm_dynin.kernels.philox_triton import philox_uniform_triton

def launch():
    for step in (0, 1, 16, 2**31 + 5):  # small, special and unsigned numbers
        for num_columns in (1, 126_349, 138_752):
            for dtype in (torch.float32, torch.float64):
                philox_uniform_triton(
                    torch.tensor([0, 5]), num_columns, key=(step, 1), step=step, place=step,
                    dtype=dtype,
                )
"""
    for capability, sizes in compile_only(script, [80, 90, 100]).items():
        # One kernel for small and one for large numbers, and special ones for K = 1, not more.
        assert 0 < len(set(sizes)) <= 24, capability
