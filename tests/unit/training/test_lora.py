"""Adapters: what they are put on, what they leave alone, their files, and merging them."""

import json

import pytest
import torch
from helpers.training_runs import small_model, small_trainer
from safetensors.torch import load_file, save_file

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.cli import main
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext.lora import (
    TARGETS,
    LoraLinear,
    adapted,
    add_adapters,
    initialise_adapters,
    is_adapter,
    load_adapter,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from vllm_dynin.training_ext.trainer import TrainConfig
from vllm_dynin.training_ext.trainer.run import RunOptions, run

TASKS = (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE)


def config(**changes):
    values = {"num_steps": 4, "seed": 3, "learning_rate": 1e-2, "num_warmup_steps": 1}
    return TrainConfig(**values | {"lora_rank": 4, "lora_alpha": 8.0} | changes)


def with_adapters(seed=5, **options):
    """A model whose adapters do something."""
    model = small_model()
    add_adapters(model, **{"rank": 4, "alpha": 8.0} | options)
    initialise_adapters(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B.normal_(std=0.1, generator=generator)
    return model


@pytest.fixture
def start(tmp_path):
    model = small_model()
    checkpoint.save_checkpoint(tmp_path / "start", model.config, model.state_dict())
    return tmp_path / "start"


IDS = torch.arange(2, 14).view(2, 6)


def test_seven_matrices_of_every_block_and_never_the_head():
    model = with_adapters()
    blocks = len(model.model.transformer.blocks)
    names = [name for name, _ in adapted(model)]
    assert len(names) == 7 * blocks
    assert all(".blocks." in name and name.rpartition(".")[2] in TARGETS for name in names)
    assert type(model.model.transformer.ff_out) is torch.nn.Linear
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_adapter(name)}
    assert len(trained) == 2 * 7 * blocks
    only = with_adapters(targets=("q_proj",))
    assert {name.rpartition(".")[2] for name, _ in adapted(only)} == {"q_proj"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "o_proj"), "'o_proj' is no matrix of a block; .*o_proj is attn_out here"),
        (("gate_proj",), "gate_proj is ff_proj here"),
        (("wte",), "'wte' is no matrix"),
        ((), "no matrix is named"),
    ],
)
def test_a_name_of_another_family_is_refused(targets, message):
    """Llama's names matched nothing and were passed over in silence."""
    with pytest.raises(ValueError, match=message):
        config(lora_targets=targets)
    with pytest.raises(ValueError, match=message):
        add_adapters(small_model(), rank=2, alpha=4, targets=targets)


def test_a_fresh_adapter_changes_nothing():
    model = small_model()
    before = model(IDS)
    add_adapters(model, rank=4, alpha=8.0)
    initialise_adapters(model, 3)
    assert torch.equal(model(IDS), before)


def test_training_moves_the_adapters_and_no_weight(start):
    trainer = small_trainer(config(num_steps=30), tasks=TASKS[1:], rows=8, num_records=2)
    trainer.load_weights(start)
    losses = [report.loss for report in trainer.steps()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    base = load_reference(start)
    for name, weight in trainer.model.named_parameters():
        if is_adapter(name):
            assert weight.any(), name
        else:
            assert torch.equal(weight, base.get_parameter(name)), name
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 2 * 7 * 2


def test_a_run_with_adapters_resumes_bit_for_bit_and_leaves_both_forms(tmp_path, start):
    whole = small_trainer(config(), tasks=TASKS)
    whole.load_weights(start)
    final = run(whole, tmp_path / "run", RunOptions(save_every=2))
    again = small_trainer(config(), tasks=TASKS, seed=8)
    again.load_weights(start)
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert not (path / "model").exists()
    assert sum(f.stat().st_size for f in path.rglob("*")) < 1e6
    again.resume(path)
    list(again.steps())
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name
    # The merged model answers as the one with adapters does, up to its rounding to bfloat16.
    assert torch.allclose(
        load_reference(final, torch.float32)(IDS), whole.model(IDS), atol=0.05, rtol=0.02
    )
    assert len(read_adapter(tmp_path / "run" / "adapter")) == 14
    assert main(["export", str(path), str(tmp_path / "out")]) == 1  # there is nothing to export


def test_frozen_weights_are_bfloat16_where_the_precision_is(start):
    trainer = small_trainer(config(num_steps=2, precision="bf16"), tasks=TASKS)
    trainer.load_weights(start)
    list(trainer.steps())
    for name, weight in trainer.model.named_parameters():
        assert weight.dtype == (torch.float32 if is_adapter(name) else torch.bfloat16), name


# --- files ----------------------------------------------------------------------------------------


def test_files_are_read_as_they_were_written(tmp_path):
    model = with_adapters()
    save_adapter(tmp_path / "adapter", model, base="base")
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (values["peft_type"], values["r"], values["lora_alpha"]) == ("LORA", 4, 8.0)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.transformer.blocks.0.ff_out.lora_A.weight" in keys
    other = with_adapters(seed=6)
    assert not torch.equal(other(IDS), model(IDS))
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(other(IDS), model(IDS))


def test_merged_is_unmerged(tmp_path, start, capsys):
    model = with_adapters()
    save_adapter(tmp_path / "adapter", model)
    assert main(["merge-adapter", *map(str, (start, tmp_path / "adapter", tmp_path / "out"))]) == 0
    assert "14 matrices changed" in capsys.readouterr().out
    merged = load_reference(tmp_path / "out")
    assert torch.allclose(merged(IDS), model(IDS), atol=1e-5)
    assert not torch.allclose(merged(IDS), load_reference(start)(IDS), atol=1e-2)
    for name, layer in adapted(model):
        product = layer.scale * (layer.lora_B @ layer.lora_A)
        assert torch.equal(merged.get_parameter(f"{name}.weight"), layer.weight + product)
    for name in ("model.transformer.ff_out.weight", "model.transformer.wte.weight"):
        assert torch.equal(merged.get_parameter(name), load_reference(start).get_parameter(name))


def change(folder, rename=None, **settings):
    """An adapter with other names or settings."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    if rename is not None:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rename": lambda n: n.replace("attn_out", "o_proj")}, "4 tensors that belong to no"),
        ({"rename": lambda n: n.replace("transformer.blocks", "layers")}, "28 tensors that belong"),
        ({"rename": lambda n: n.replace("blocks.0.ff_out", "ff_out")}, "2 tensors that belong"),
        ({"peft_type": "IA3"}, "is 'IA3', and only LORA is read"),
        ({"use_dora": True}, "use_dora: DoRA has no exact merge"),
        ({"bias": "all"}, "trains biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(tmp_path, start, changes, message):
    """The last block's matrix and the head share a name: `ff_out` without a block is the head's."""
    save_adapter(tmp_path / "adapter", with_adapters())
    change(tmp_path / "adapter", **changes)
    with pytest.raises(ValueError, match=message):
        merge_adapter(start, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scales_of_rslora(tmp_path):
    save_adapter(tmp_path / "adapter", with_adapters())
    change(tmp_path / "adapter", use_rslora=True)
    assert {one.scale for one in read_adapter(tmp_path / "adapter").values()} == {4.0}  # 8 / √4


def test_another_checkpoint_is_refused(tmp_path):
    save_adapter(tmp_path / "adapter", with_adapters())
    other = small_model(layers=1)
    checkpoint.save_checkpoint(tmp_path / "other", other.config, other.state_dict())
    with pytest.raises(ValueError, match=r"changes model\.transformer\.blocks\.1.*missing"):
        merge_adapter(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no adapter"):
        read_adapter(tmp_path / "other")


def test_peft_reads_and_writes_the_same_files(tmp_path, start):
    """With the library itself, where it is installed."""
    peft = pytest.importorskip("peft")
    model = with_adapters()
    save_adapter(tmp_path / "adapter", model)
    theirs = peft.PeftModel.from_pretrained(small_model(), tmp_path / "adapter")
    assert torch.allclose(theirs.base_model.model(IDS), model(IDS), atol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    ours = with_adapters(seed=9)
    load_adapter(ours, tmp_path / "again")
    assert torch.equal(ours(IDS), model(IDS))


def test_settings_that_exclude_each_other():
    for changes, message in (
        ({"sharding": "fsdp2"}, "use sharding=none"),
        ({"ema_decay": 0.9}, "adapters have no moving average"),
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**changes)
    assert isinstance(with_adapters().model.transformer.blocks[0].ff_out, LoraLinear)
