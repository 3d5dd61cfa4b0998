"""The dry run: counts against the real module, memory and lengths by hand."""

import pytest
import torch
from helpers.tensor_peak import TensorPeak

from vllm_dynin.config import DyninOmniConfig, MMadaConfig
from vllm_dynin.entrypoints import cli
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext import dry_run
from vllm_dynin.training_ext.collate import Batch
from vllm_dynin.training_ext.directions import objectives
from vllm_dynin.training_ext.dry_run import Sequence, Sharding
from vllm_dynin.training_ext.trainer import TrainConfig, Trainer
from vllm_dynin.training_ext.trainer.feed import FunctionFeed

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
    kept, block = 2 * 32 * 4096, 2 * (15 * 4096 + 6 * 12_288)
    row = Sequence(task="x", length=100, num_targets=10, columns="image")
    assert dry_run.activation_bytes(config, row) == 100 * (kept + block)
    assert dry_run.activation_bytes(config, row, rows=3) == 300 * (kept + block)
    # Where the loss is more: never more than the stated logits, in float32 and bfloat16.
    row = Sequence(task="x", length=100, num_targets=90, columns="text")
    found = dry_run.activation_bytes(config, row, max_logits=20 * 138_752)
    assert found == 100 * kept + max(100 * block, 20 * 138_752 * 6)
    few = Sequence(task="x", length=10, num_targets=9, columns="text")
    assert dry_run.activation_bytes(config, few) == 10 * kept + 9 * 138_752 * 6


@pytest.mark.parametrize(
    ("width", "layers", "mlp", "length", "max_logits"),
    [
        (64, 2, 192, 2048, 2**16),  # a block's backward pass
        (64, 6, 384, 2048, 2**16),
        (64, 2, 192, 1024, 2**21),  # the chunks of the loss count as well
        (128, 4, 384, 256, 2**16),  # the update
    ],
)
def test_within_a_tenth_of_a_measured_run(width, layers, mlp, length, max_logits):
    """Two steps of training, every tensor counted."""
    config = wide(width, layers, mlp)
    found = measured(config, length, max_logits=max_logits)
    row = Sequence(task="x", length=length, num_targets=length, columns="text")
    assert found == pytest.approx(dry_run.peak_bytes(config, row, max_logits=max_logits), rel=0.1)


@pytest.mark.parametrize("mlp", [192, 384])
def test_frozen_in_bfloat16_within_a_tenth(mlp):
    """Adapters: two bytes a weight, and the pass."""
    config, length = wide(64, 2, mlp), 2048
    options = {"precision": "bf16", "lora_rank": 1, "lora_targets": ("q_proj",), "num_steps": 1}
    found = measured(config, length, max_logits=2**16, **options)
    row = Sequence(task="x", length=length, num_targets=length, columns="text")
    activations = dry_run.activation_bytes(config, row, max_logits=2**16)
    weights = 2 * dry_run.num_parameters(config)["total"]
    assert found == pytest.approx(weights + activations, rel=0.1)


def wide(width, layers, mlp):
    return DyninOmniConfig(
        d_model=width,
        n_heads=4,
        n_layers=layers,
        mlp_hidden_size=mlp,
        codebook_size=16,
        speech_codebook_size=16,
        text_vocab_size=1500,
    )


def measured(config, length, **options):
    """Most bytes of two steps of one packed row."""
    torch.set_num_threads(1)

    def batch(step):
        ids = torch.randint(5, 1000, (1, length), generator=torch.Generator().manual_seed(step))
        return Batch(ids_BT=ids, is_target_BT=torch.ones_like(ids, dtype=torch.bool), labels_BT=ids)

    shared = {"num_steps": 2, "num_warmup_steps": 0, "is_packed": True}
    given = TrainConfig(**{**shared, "is_activation_checkpointed": True, **options})
    with TensorPeak() as peak:
        model = LLaDA(config)
        list(Trainer(model, FunctionFeed(batch), objectives(), given).steps())
    return peak.most


def test_the_real_rows_of_a_gpu_and_the_disk():
    """16 rows a GPU where one was assumed, and 97 GB a checkpoint, three while one is written."""
    text = dry_run.report(DyninOmniConfig(), num_gpus=8, stages=(dry_run.paper_stages()[1],))
    assert "16 rows in a pass on a GPU; 97 GB a checkpoint, 292 GB while" in text
    assert dry_run.disk_bytes(DyninOmniConfig()) == 3 * 12 * N


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
