"""Sizes are those of what is really built, and docs/sizing.md says the same."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.tiny_checkpoint import random_tensors, tiny_config

from vllm_dynin import sizing
from vllm_dynin.config import DyninOmniConfig

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_that_are_computed():
    spec = importlib.util.spec_from_file_location("table", ROOT / "packaging" / "sizing_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    page = (ROOT / "docs" / "sizing.md").read_text()
    assert table.rendered(page) == page, "run python packaging/sizing_table.py"


def test_weights_are_those_of_a_checkpoint():
    config = tiny_config(DyninOmniConfig)
    tensors = random_tensors(config).values()
    assert sizing.weight_bytes(config, 4) == sum(tensor.nbytes for tensor in tensors)
    norms = sum(tensor.nbytes for tensor in tensors if tensor.ndim == 1)
    whole = sizing.weight_bytes(config, 4)
    assert sizing.weight_bytes(config, 4, ranks=2) == norms + (whole - norms) / 2
    table = 2 * config.vocab_size * config.d_model * 4
    blocks = whole - norms - table
    assert sizing.weight_bytes(config, 4, block_bytes=1) == norms + table + blocks / 4


def test_the_published_model_is_as_large_as_its_files():
    """16.23 GB in bfloat16, and half a mebibyte of KV a row."""
    config = DyninOmniConfig(vocab_size=138_752)
    assert sizing.weight_bytes(config, 2) == pytest.approx(16.23e9, rel=0.002)
    assert sizing.kv_row_bytes(config, 2) == 512 * 1024
    assert sizing.kv_row_bytes(config, 2, ranks=8) == 64 * 1024


@pytest.mark.parametrize(
    ("rows", "requests"), [(512, 16), (2048, 16), (4096, 16), (8192, 21), (16384, 32), (65536, 32)]
)
def test_default_requests(rows, requests):
    assert sizing.default_requests(rows) == requests


@pytest.mark.parametrize("block_size", [1, 16, 32, 128])
def test_any_requests_that_fill_a_step_fit_the_blocks(block_size):
    """However their rows divide: 8,192 rows of 21 requests, each with a block partly used."""
    blocks = sizing.exact_blocks(8192, 21, block_size, 4096)
    for longest in (1, 17, 389, 390, 391, 4096):
        rows, left = [], 8192
        while left and len(rows) < 21:
            rows.append(min(longest, left))
            left -= rows[-1]
        assert sum(-(-count // block_size) for count in rows) + 1 <= blocks


def test_sampler_bytes_hold_a_product_and_a_tile():
    """Measured by what the tile's operations make, in bfloat16 and float64."""
    rows = sizing.TILE_ELEMENTS // 8192
    logits = torch.zeros(rows, 8192, dtype=torch.bfloat16)
    made = 2 * logits.nbytes + 4 * logits.double().nbytes
    assert sizing.sampler_bytes(2) == sizing.LOGIT_ELEMENTS * 2 + made
