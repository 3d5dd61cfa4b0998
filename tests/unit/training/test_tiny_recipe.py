"""The recipe of dynin-tiny, cut to a few steps: every phase, and what it leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vllm_dynin
from vllm_dynin.canvas import Task
from vllm_dynin.checkpoint import EMBEDDING, iter_tensors, load_config
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.text_tokenizer import load_tokenizer
from vllm_dynin.training_ext.__main__ import main
from vllm_dynin.training_ext.tiny.decoding import DECODING, LONGEST_ANSWER
from vllm_dynin.training_ext.tiny.recipe import dynin_tiny, run, tiny_objectives


def smallest(recipe):
    return replace(
        recipe,
        d_model=32,
        num_layers=1,
        mlp_hidden_size=64,
        num_pictures=1,
        num_clips=1,
        rows=dict.fromkeys(recipe.rows, 2),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one recipe: the checkpoint, its phases, the losses, and the second checkpoint."""
    root = tmp_path_factory.mktemp("tiny")
    recipe = smallest(dynin_tiny(seed=3, length=0.003))
    losses = []
    run(recipe, root / "a", root / "phases", lambda name, report: losses.append((name, report)))
    run(recipe, root / "b")
    return root, losses


def test_every_phase_trains_its_directions(made):
    _, losses = made
    by_phase = {}
    for name, report in losses:
        by_phase.setdefault(name, set()).update(report.tasks)
    assert list(by_phase) == ["s0", "s1", "s2", "s3"]
    assert by_phase["s0"] == {Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.TEXT_TO_IMAGE}
    assert by_phase["s1"] == {Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH}
    assert len(by_phase["s2"]) == 7


def test_phases_are_checkpoints_of_the_family(made):
    root, _ = made
    kinds = {path.name: load_config(path).model_type for path in (root / "phases").iterdir()}
    assert kinds == {
        "s0": "mmada",
        "s0-speech": "dynin_omni",
        "s1": "dynin_omni",
        "merged": "dynin_omni",
        "s2": "dynin_omni",
        "s3": "dynin_omni",
    }


def test_merged_rows_are_the_backbones_but_for_speech_and_its_controls(made):
    root, _ = made
    tables = {
        name: dict(iter_tensors(root / "phases" / name))[EMBEDDING]
        for name in ("s0-speech", "s1", "merged")
    }
    vocabulary = load_config(root / "phases" / "merged").vocabulary
    merged, backbone, adapted = tables["merged"], tables["s0-speech"], tables["s1"]
    assert torch.equal(merged[: vocabulary.num_text_pieces], backbone[: vocabulary.num_text_pieces])
    for row in (vocabulary.soa, vocabulary.v2t, *vocabulary.speech):
        assert torch.equal(merged[row], adapted[row])
    assert not torch.equal(backbone[vocabulary.soa], adapted[vocabulary.soa])


def test_the_checkpoint_is_whole_and_repeats(made):
    root, _ = made
    config = load_config(root / "a")
    load_tokenizer(str(root / "a"), config.vocabulary)
    assert ImageCodec.from_pretrained(root / "a" / "image_codec").num_codes == 16
    speech = SpeechCodec.from_pretrained(root / "a" / "speech_codec")
    assert speech.num_units == config.speech_codebook_size == 81
    shipped = Path(vllm_dynin.__file__).parent / "assets" / "dynin-tiny"
    written = (root / "a" / "generation_config.json").read_bytes()
    assert written == (shipped / "generation_config.json").read_bytes()
    assert json.loads(written)["max_new_tokens"] == LONGEST_ANSWER
    assert max(own.max_tokens or 0 for own in DECODING.values()) <= LONGEST_ANSWER
    tensors, again = dict(iter_tensors(root / "a")), dict(iter_tensors(root / "b"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_no_eos_is_learnt_in_stage_1():
    assert dynin_tiny().phases["s1"].eos == "none"
    assert dynin_tiny(stage1_eos="all").phases["s1"].eos == "all"
    assert {phase.eos for name, phase in dynin_tiny().phases.items() if name != "s1"} == {"all"}
    assert {o.normalisation for o in tiny_objectives().values()} == {"mean"}


def test_bad_arguments(tmp_path, capsys):
    with pytest.raises(ValueError, match="length=0 must be above 0"):
        dynin_tiny(length=0)
    with pytest.raises(SystemExit) as stopped:
        main(["dynin-tiny", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "exists; choose another folder" in capsys.readouterr().err


def test_command(tmp_path, monkeypatch, capsys):
    from vllm_dynin.training_ext.tiny import recipe as module

    small = smallest(dynin_tiny(length=0.001))
    monkeypatch.setattr(module, "dynin_tiny", lambda **options: small)
    assert main(["dynin-tiny", "--out", str(tmp_path / "made")]) == 0
    assert "s of processor time" in capsys.readouterr().out
    card = (tmp_path / "made" / "README.md").read_text()
    assert "# dynin-tiny" in card and "1437 of scikit-learn" in card
    assert json.loads((tmp_path / "made" / "config.json").read_text())["d_model"] == 32
