"""Checkpoint names, shapes, errors, and writing whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig, MMadaConfig
from vllm_dynin.reference.backbone import LLaDA, load_reference

SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 12, "text_vocab_size": 300}


def small_config(**changes):
    return LLaDAConfig(**(SMALL | changes))


def small_tensors(config, num_rows=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = checkpoint.expected_shapes(config, num_rows or config.vocab_size)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_names_of_the_8b_checkpoint():
    shapes = checkpoint.expected_shapes(DyninOmniConfig(), 138_752)
    assert len(shapes) == 291
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 8_116_244_480
    assert shapes["model.transformer.wte.weight"] == (138_752, 4096)
    assert shapes["model.transformer.blocks.31.ff_out.weight"] == (4096, 12_288)
    assert shapes["model.transformer.blocks.0.up_proj.weight"] == (12_288, 4096)
    assert shapes["model.transformer.ff_out.weight"] == (138_752, 4096)
    assert shapes["model.transformer.ln_f.weight"] == (4096,)


def test_names_are_the_reference_models_parameters():
    config = small_config(n_heads=4, n_kv_heads=2)
    assert shapes_of(LLaDA(config).state_dict()) == checkpoint.expected_shapes(
        config, config.vocab_size
    )


def test_every_kind_of_misfit_is_named_at_once():
    config = small_config()
    shapes = shapes_of(small_tensors(config))
    del shapes["model.transformer.ln_f.weight"]
    shapes["lm_head.weight"] = (4, 8)
    shapes["model.transformer.blocks.1.ff_out.weight"] = (12, 8)
    with pytest.raises(ValueError) as caught:
        checkpoint.check_tensors(shapes, config)
    message = str(caught.value)
    assert "1 missing: model.transformer.ln_f.weight" in message
    assert "1 unexpected: lm_head.weight" in message
    assert "blocks.1.ff_out.weight (12, 8), expected (8, 12)" in message


def test_many_missing_tensors_are_counted():
    config = small_config()
    shapes = {
        name: shape
        for name, shape in shapes_of(small_tensors(config)).items()
        if "blocks.1." not in name
    }
    with pytest.raises(ValueError, match=r"9 missing: .*blocks\.1\.attn_norm.* and 4 more"):
        checkpoint.check_tensors(shapes, config)


def test_row_count_comes_from_the_table_and_must_hold_the_vocabulary():
    config = small_config(vocab_size=9999)
    assert checkpoint.check_tensors(shapes_of(small_tensors(config, 300)), config) == 300
    with pytest.raises(ValueError, match="has 299 rows but the vocabulary uses 300"):
        checkpoint.check_tensors(shapes_of(small_tensors(config, 299)), config)
    with pytest.raises(ValueError, match=r"wte\.weight is missing"):
        checkpoint.table_rows({})
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        checkpoint.table_rows({checkpoint.EMBEDDING: (3,)})


def test_unused_video_merger_is_ignored(tmp_path):
    config = small_config()
    tensors = small_tensors(config) | {"video_token_merger.norm.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert set(checkpoint.tensor_shapes(tmp_path)) == set(small_tensors(config))
    load_reference(tmp_path)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 2_000, 1])
def test_save_and_load_round_trip(tmp_path, max_shard_bytes):
    config = small_config()
    tensors = small_tensors(config)
    folder = tmp_path / "out"
    checkpoint.save_checkpoint(
        folder, config, iter(tensors.items()), max_shard_bytes=max_shard_bytes
    )
    read = dict(checkpoint.iter_tensors(folder))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    num_files = len(checkpoint.tensor_files(folder))
    assert num_files == {10**9: 1, 1: len(tensors)}.get(max_shard_bytes, num_files)
    assert (folder / "model.safetensors.index.json").exists() == (num_files > 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no temporary left
    model = load_reference(folder, dtype=torch.bfloat16)
    assert model.head_weight.dtype == torch.bfloat16
    assert not model.training


def test_config_json_is_the_originals(tmp_path):
    config = DyninOmniConfig(**SMALL, image_codebook_size=16, speech_codebook_size=32)
    checkpoint.save_checkpoint(tmp_path / "out", config, small_tensors(config))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["DyninOmniModelLM"]
    assert written["model_type"] == "dynin_omni"
    assert written["d_model"] == 8 and "hidden_size" not in written
    assert written["weight_tying"] is False and written["rope_full_precision"] is True
    assert written["vocab_size"] == written["embedding_size"] == config.vocab_size
    assert written["mask_token_id"] == config.vocabulary.mask
    assert written["eos_token_id"] == written["pad_token_id"] == config.vocabulary.eos
    read = checkpoint.load_config(tmp_path / "out")
    assert type(read) is DyninOmniConfig
    assert read.vocabulary == config.vocabulary
    assert read.n_layers == 2 and read.head_dim == 4


def test_each_family_member_keeps_its_class(tmp_path):
    for number, cls in enumerate((LLaDAConfig, MMadaConfig, DyninOmniConfig)):
        config = cls(**SMALL)
        checkpoint.save_checkpoint(tmp_path / str(number), config, small_tensors(config))
        assert type(checkpoint.load_config(tmp_path / str(number))) is cls


def test_a_failed_save_leaves_nothing_and_keeps_the_old(tmp_path):
    config = small_config()
    tensors = small_tensors(config)
    folder = tmp_path / "out"
    incomplete = dict(list(tensors.items())[:-1])
    with pytest.raises(ValueError, match=r"1 missing: model\.transformer\.ff_out\.weight"):
        checkpoint.save_checkpoint(folder, config, incomplete)
    assert list(tmp_path.iterdir()) == []

    checkpoint.save_checkpoint(folder, config, tensors)
    with pytest.raises(ValueError, match="exists; choose another folder"):
        checkpoint.save_checkpoint(folder, config, tensors)
    with pytest.raises(ValueError, match="1 missing"):
        checkpoint.save_checkpoint(folder, config, incomplete, replace=True)
    assert torch.equal(
        dict(checkpoint.iter_tensors(folder))[checkpoint.HEAD], tensors[checkpoint.HEAD]
    )

    other = small_tensors(config, seed=1)
    checkpoint.save_checkpoint(folder, config, other, replace=True)
    assert torch.equal(
        dict(checkpoint.iter_tensors(folder))[checkpoint.HEAD], other[checkpoint.HEAD]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_slices_of_one_tensor_are_saved_as_their_own(tmp_path):
    config = small_config()
    tensors = small_tensors(config)
    both = torch.randn(24, 8)
    prefix = checkpoint.block_prefix(0)
    tensors[f"{prefix}ff_proj.weight"], tensors[f"{prefix}up_proj.weight"] = both[:12], both[12:]
    checkpoint.save_checkpoint(tmp_path / "out", config, tensors)
    read = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(read[f"{prefix}up_proj.weight"], both[12:])
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 40_000


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "config.json is missing"),
        ({"config.json": "{"}, "cannot be read as JSON"),
        ({"config.json": "[1]"}, "holds a JSON list"),
        ({"config.json": '{"model_type": "bert"}'}, "model_type='bert'; known are dynin_omni"),
        ({"config.json": '{"model_type": "llada"}'}, "holds neither model.safetensors nor"),
        (
            {"config.json": '{"model_type": "llada"}', "model.safetensors": "not tensors"},
            "cannot be read as safetensors",
        ),
        (
            {"config.json": '{"model_type": "llada"}', "model.safetensors.index.json": "{}"},
            "has no weight_map",
        ),
        (
            {
                "config.json": '{"model_type": "llada"}',
                "model.safetensors.index.json": '{"weight_map": {"a": "../x.safetensors"}}',
                "../x.safetensors": "beside",
            },
            "names the shard '../x.safetensors'",
        ),
    ],
)
def test_broken_folders_are_refused(tmp_path, files, message):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_reference(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"tensor a is in both 1\.safetensors and 2\.safetensors"):
        list(checkpoint.iter_tensors(tmp_path))
