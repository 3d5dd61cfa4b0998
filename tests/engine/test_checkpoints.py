"""Every architecture and file layout loads and answers as the reference; broken ones are named."""

import json

import pytest
import torch
from helpers.engines import start_llm
from helpers.request_mix import expected_tokens, generate, mixed_cases
from helpers.tiny_checkpoint import random_tensors, tiny_config, write_checkpoint
from safetensors.torch import load_file, save_file

from vllm_dynin import ARCHITECTURES, checkpoint
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig, MMadaConfig
from vllm_dynin.reference.backbone import load_reference

SHORT = {"max_prompt": 30, "max_tokens": 16}


def edit_config(folder, **changes):
    """Change or, with None, remove fields of config.json."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensors(folder, edit):
    path = folder / checkpoint.SINGLE_FILE
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def assert_serves_as_reference(folder, count=6, **options):
    reference = load_reference(folder)
    cases = mixed_cases(count, reference.config, seed=3, **SHORT)
    with start_llm(folder, **options) as llm:
        assert generate(llm, cases) == [expected_tokens(reference, case) for case in cases]
        return llm


@pytest.mark.parametrize(
    ("config_class", "architecture"),
    [
        (LLaDAConfig, "LLaDAModelLM"),
        (MMadaConfig, "MMadaModelLM"),
        (DyninOmniConfig, "DyninOmniModelLM"),
        (DyninOmniConfig, "DyninOmniForConditionalGeneration"),
    ],
)
def test_every_architecture(tmp_path, config_class, architecture):
    assert architecture in ARCHITECTURES
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_config(config_class))
    edit_config(folder, architectures=[architecture])
    llm = assert_serves_as_reference(folder, count=12)
    assert llm.llm_engine.model_config.architectures == [architecture]


def test_all_registered_architectures_are_tested():
    marks = test_every_architecture.pytestmark
    assert {name for _, name in marks[0].args[1]} == set(ARCHITECTURES)


def test_sharded_safetensors(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", max_shard_bytes=100_000)
    assert len(checkpoint.tensor_files(folder)) > 3
    assert_serves_as_reference(folder)


def test_grouped_key_value_heads(tmp_path):
    config = tiny_config(num_heads=4)
    config.n_kv_heads = 2
    assert_serves_as_reference(write_checkpoint(tmp_path / "checkpoint", config))


@pytest.mark.parametrize(
    "stale",
    [
        {"vocab_size": 126464, "embedding_size": 126464},
        {"vocab_size": 100, "embedding_size": None},
        {"tie_word_embeddings": True},
        {"use_cache": True},
        {"vid_merge": True, "video_token_merger": {"layers": 2}},
        {"torch_dtype": "bfloat16", "transformers_version": "4.46.3"},
        {"auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}},
        {"n_kv_heads": None},
    ],
)
def test_stale_fields_of_config_json_are_ignored(tmp_path, stale):
    folder = write_checkpoint(tmp_path / "checkpoint")
    edit_config(folder, **stale)
    assert_serves_as_reference(folder, count=3)


def test_the_unused_video_merger_is_skipped(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    edit_tensors(
        folder, lambda tensors: tensors.update({"video_token_merger.norm.weight": torch.ones(3)})
    )
    assert_serves_as_reference(folder, count=3)


def test_rows_behind_the_vocabulary_are_there_and_unused(tmp_path):
    """More rows in the table than config.json says: the table wins."""
    config = tiny_config()
    config.vocab_size = 700
    folder = write_checkpoint(tmp_path / "checkpoint", config)
    edit_config(folder, vocab_size=640)
    reference = load_reference(folder)
    assert reference.num_rows == reference.config.vocab_size == 700
    cases = mixed_cases(8, reference.config, seed=3, **SHORT)
    with start_llm(folder) as llm:
        assert generate(llm, cases) == [expected_tokens(reference, case) for case in cases]


LAST = "model.transformer.blocks.1.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(LAST), rf"1 missing: {LAST}"),
        (
            lambda tensors: tensors.update({"model.transformer.blocks.1.bias": torch.ones(2)}),
            r"1 unexpected: model\.transformer\.blocks\.1\.bias",
        ),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.ones(2, 2)}),
            r"1 unexpected: lm_head\.weight",
        ),
        (
            lambda tensors: tensors.update({LAST: torch.ones(128, 63)}),
            rf"1 of another shape: {LAST} \(128, 63\), expected \(128, 64\)",
        ),
        (
            lambda tensors: tensors.update({checkpoint.HEAD: torch.ones(600, 64)}),
            r"1 of another shape: model\.transformer\.ff_out\.weight \(600, 64\)",
        ),
        (
            lambda tensors: tensors.update({checkpoint.FINAL_NORM: torch.ones(1)}),
            r"1 of another shape: model\.transformer\.ln_f\.weight \(1,\)",
        ),
        (
            lambda tensors: tensors.pop(checkpoint.EMBEDDING),
            r"model\.transformer\.wte\.weight is missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, edit, message):
    folder = write_checkpoint(tmp_path / "checkpoint")
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=message), start_llm(folder):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": False}, "rope=False; only rope=True is implemented"),
        ({"weight_tying": True}, "weight_tying=True; only weight_tying=False"),
        ({"activation_type": "gelu"}, "activation_type='gelu'; only 'silu'"),
        ({"block_type": "sequential"}, "block_type='sequential'; only block_type='llama'"),
    ],
)
def test_transformers_of_another_kind_are_refused(tmp_path, changes, message):
    folder = write_checkpoint(tmp_path / "checkpoint")
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message), start_llm(folder):
        pass


def test_bfloat16_serves(tmp_path):
    """Rounding differs between the kernels, so answers are compared where it cannot decide."""
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=torch.bfloat16)
    reference = load_reference(folder)
    assert reference.head_weight.dtype == torch.bfloat16
    cases = mixed_cases(16, reference.config, seed=3, **SHORT)
    with start_llm(folder, dtype="auto") as llm:
        assert llm.llm_engine.model_config.dtype == torch.bfloat16
        found = generate(llm, cases)
        assert generate(llm, cases[::-1]) == found[::-1]
    expected = [expected_tokens(reference, case) for case in cases]
    first = [a[:1] == b[:1] for a, b in zip(found, expected, strict=True)]
    assert sum(first) >= 12
    assert all(found)


def test_random_tensors_are_those_of_the_format():
    config = tiny_config()
    shapes = {name: tuple(tensor.shape) for name, tensor in random_tensors(config).items()}
    assert checkpoint.check_tensors(shapes, config) == config.vocab_size
