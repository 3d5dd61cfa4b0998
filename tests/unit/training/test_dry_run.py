"""The dry run: counts against the real module, memory and lengths by hand."""

import pytest
import torch

from vllm_dynin.config import DyninOmniConfig, MMadaConfig
from vllm_dynin.entrypoints import cli
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext import dry_run
from vllm_dynin.training_ext.dry_run import Sequence, Sharding

N = 8_116_244_480


@pytest.mark.parametrize("config", [DyninOmniConfig(), MMadaConfig()])
def test_parameters_are_those_of_the_module(config):
    with torch.device("meta"):
        model = LLaDA(config)
    parameters = list(model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    counts = dry_run.num_parameters(config)
    assert counts["total"] == sum(parameter.numel() for parameter in parameters)


def test_parts_of_the_8b_model():
    assert dry_run.num_parameters(DyninOmniConfig()) == {
        "embedding": 138_752 * 4096,
        "head": 138_752 * 4096,
        "norm": 4096,
        "blocks": 32 * (4 * 4096**2 + 3 * 4096 * 12_288 + 2 * 4096),
        "total": N,
    }


@pytest.mark.parametrize(
    ("sharding", "per_parameter", "sharded"),
    [
        # Bytes a parameter that every GPU holds, and that are divided.
        (Sharding.NONE, 16, 0),
        (Sharding.FSDP2, 0, 16),
        (Sharding.ZERO2, 2, 14),
        (Sharding.ZERO3, 0, 16),
    ],
)
def test_state_by_hand(sharding, per_parameter, sharded):
    for gpus in (1, 32):
        parts = dry_run.state_bytes(DyninOmniConfig(), sharding, gpus)
        lasting = sum(parts.values()) - parts["transient"]
        assert lasting == pytest.approx(N * (per_parameter + sharded / gpus), rel=1e-6)


def test_transients_by_hand():
    config = DyninOmniConfig()
    tables, block = 2 * 138_752 * 4096 + 4096, 6_979_584_000 // 32
    transient = {
        Sharding.NONE: 2 * N,
        Sharding.FSDP2: 2 * (tables + 2 * block) + 6 * tables,
        Sharding.ZERO2: 10**9,
        Sharding.ZERO3: 3 * 10**9,
    }
    for sharding, expected in transient.items():
        assert dry_run.state_bytes(config, sharding, 8)["transient"] == expected


def test_lengths_of_the_paper():
    stages = dry_run.paper_stages()
    lengths = [{row.task: row.length for row in dry_run.sequences(stage)} for stage in stages]
    assert lengths[0] == {"V2T": 512 + 3 + 256, "S2T": 425 + 3 + 256, "T2S": 425 + 130}
    assert lengths[1]["T2I"] == 128 + 441 + 2
    assert lengths[1]["I2I"] == 5 + 2 * 256 + 128
    assert lengths[1]["V2T"] == lengths[1]["T2T"] == 2048
    assert lengths[2]["V2T"] == lengths[2]["T2T"] == 4096
    assert lengths[2]["T2I"] == 1154
    assert lengths[2]["I2I"] == 1015
    assert dry_run.tokens_per_step(stages[0]) == pytest.approx(128 * (771 + 684 + 555) / 3)


def test_activations_by_hand():
    config = DyninOmniConfig()
    per_token = 2 * (32 * 4096 + 8 * 4096 + 4 * 12_288)
    for columns, width in (("text", 138_752), ("image", 8192), ("speech", 4098)):
        row = Sequence(task="x", length=100, num_targets=10, columns=columns)
        assert dry_run.activation_bytes(config, row) == 100 * per_token + 8 * 10 * width


def test_refusals():
    with pytest.raises(ValueError, match="num_gpus=0"):
        dry_run.state_bytes(DyninOmniConfig(), Sharding.ZERO3, 0)
    with pytest.raises(ValueError, match="num_gpus=0"):
        dry_run.report(DyninOmniConfig(), num_gpus=0)
    with pytest.raises(ValueError, match="rows_per_gpu=0"):
        dry_run.report(DyninOmniConfig(), rows_per_gpu=0)
    with pytest.raises(ValueError, match="100 pixels are not a multiple of 16"):
        dry_run.image_tokens(100)


def test_command(capsys, tmp_path):
    assert cli.main(["dry-run"]) == 0
    out = capsys.readouterr().out
    assert "8,116,244,480 parameters" in out
    assert "stage1: 32 GPUs, 128 sequences a step (4 a GPU), 85,760 tokens a step" in out
    assert "128 does not divide over 40 GPUs" in out
    assert cli.main(["dry-run", str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().err
