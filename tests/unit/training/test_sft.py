"""`vllm-dynin train sft`: a checkpoint and a file are enough."""

import json

import pytest
import torch
from helpers.tiny_checkpoint import random_tensors, tiny_config
from helpers.tiny_tokenizer import make_tokenizer
from helpers.training_data import write_jsonl

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig
from vllm_dynin.entrypoints.cli import main
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext.data.tables import open_table
from vllm_dynin.training_ext.lora import read_adapter
from vllm_dynin.training_ext.sft import SftOptions, count_rows, guess, sft_data, sft_stage

T2T = Task.TEXT_TO_TEXT


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "llada"
    config = tiny_config(LLaDAConfig, num_heads=1)
    checkpoint.save_checkpoint(folder, config, random_tensors(config), make_tokenizer())
    return folder


def talk(question, answer):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def sft(*arguments):
    return main(["train", "sft", *map(str, arguments)])


def test_a_checkpoint_and_a_file_are_enough(start, tmp_path, monkeypatch, capsys):
    """One process without a launcher: adapters, merged at the end, and a checkpoint to serve."""
    rows = [talk(f"say {n}", f"blue {n}") for n in range(20)] + [talk("long", "x" * 3000)]
    file = write_jsonl(tmp_path / "chat.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    assert sft("--from", start, "--data", file, "--epochs", 2, "--batch", 8) == 0
    out, err = capsys.readouterr()
    assert "t2t: 20 of 21 rows looked at fit" in err and "left out: 1 does not fit" in err
    assert "up to 256 EOS behind the answer" in err
    assert "train.num_steps = 6" in out and "train.lora_rank = 16" in out  # 21 rows, 2 epochs
    final = load_reference(tmp_path / "sft" / "final")
    assert final.head_weight.dtype == torch.bfloat16
    assert len(read_adapter(tmp_path / "sft" / "adapter")) == 7 * len(
        final.model.transformer.blocks
    )
    before = load_reference(start, torch.bfloat16)
    assert torch.equal(final.head_weight, before.head_weight)
    changed = final.model.transformer.blocks[0].ff_out.weight
    assert not torch.equal(changed, before.model.transformer.blocks[0].ff_out.weight)
    listed = (tmp_path / "sft" / "filtered-00000.jsonl").read_text()
    assert "does not fit" in listed


def test_all_weights_validation_and_settings(start, tmp_path, capsys):
    file = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "response": "a"}] * 9)
    given = ("--from", start, "--data", file, "--out", tmp_path / "run", "--full", "--batch", 4)
    watched = ("--validation", file, "--validation-records", 2, "--generate", 0)
    assert sft(*given, *watched, "train.num_steps=2", "train.learning_rate=1e-3") == 0
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and "validation/nll/t2t" in last
    assert not (tmp_path / "run" / "adapter").exists()
    final, before = load_reference(tmp_path / "run" / "final"), load_reference(start)
    assert not torch.equal(final.head_weight, before.head_weight.bfloat16())
    # Prolonged: the same command with more steps goes on.
    assert sft(*given, *watched, "train.num_steps=3", "train.learning_rate=1e-3", "--resume") == 0
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3


@pytest.mark.parametrize(
    ("fields", "adapter"),
    [
        (talk("q", "a"), "dialogue"),
        ({"conversations": []}, "dialogue"),
        ({"instruction": "q", "input": "", "output": "a"}, "pair"),
        ({"problem": "q", "solution": "a"}, "pair"),
        ({"text": "q", "answer": "a"}, "record"),
        ({"task": "t2i", "text": "q", "target_image": [1]}, "record"),
    ],
)
def test_the_columns_say_what_they_mean(fields, adapter):
    assert guess(fields, T2T) == adapter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl is not there"),
        (["--adapter", "conversation"], "adapter 'conversation' is unknown; known are record"),
        (["--epochs", "0"], "epochs=0.0 must be above 0"),
        (["train.lora_targets=['o_proj']"], "o_proj is attn_out here"),
        (["train.num_step=3"], "did you mean train.num_steps?"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(start, tmp_path, capsys, arguments, message):
    file = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "response": "a"}])
    given = ["--from", start, "--data", file, "--out", tmp_path / "run"]
    assert sft(*given, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_columns_that_say_nothing(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"left": "q", "right": "a"}])
    with pytest.raises(ValueError, match="columns left, right say no question and answer"):
        sft_data(file, SftOptions())
    named = sft_data(file, SftOptions(adapter="pair"))
    assert named["tasks"]["t2t"]["sources"][0]["adapter"] == "pair"
    assert len(open_table(str(file))) == count_rows(named)[T2T] == 1


def test_settings_follow_data_and_machine():
    """The 8B with adapters on one GPU: bf16, blocks recomputed, passes of 8,192 positions."""
    large = DyninOmniConfig()
    stage = sft_stage(large, {T2T: 10_000}, SftOptions(), has_gpu=True)
    train = stage.train
    assert train.num_steps == 938 and train.num_warmup_steps == 29  # 3 epochs of 10,000 by 32
    assert (train.precision, train.sharding, train.is_packed) == ("bf16", "none", True)
    assert train.is_activation_checkpointed and train.num_micro_batches == 8  # 4 rows of 2,048
    policy = stage.policies[T2T]
    assert (policy.max_length, policy.max_filler, policy.overflow) == (2048, 256, "refuse")
    whole = sft_stage(large, {T2T: 10_000}, SftOptions(rank=None), world_size=8, has_gpu=True)
    assert (whole.train.sharding, whole.train.lora_rank) == ("fsdp2", None)
    assert whole.global_batch == 32 and whole.train.num_micro_batches == 1
    few = sft_stage(large, {T2T: 5, Task.TEXT_TO_IMAGE: 15}, SftOptions(), has_gpu=False)
    assert few.global_batch == 20 and few.train.precision == "fp32"
    assert [one.share for one in few.tasks.values()] == [15, 5]
