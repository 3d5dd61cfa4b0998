"""Vocabulary extension: values of new rows, sizes, configuration, refusals."""

import json

import pytest
import torch
from helpers.tiny_checkpoint import tiny_config, write_checkpoint
from safetensors.torch import save_file

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig, MMadaConfig
from vllm_dynin.entrypoints import cli
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext import vocab
from vllm_dynin.training_ext.vocab import (
    TABLES,
    CheckpointReader,
    ExtendOptions,
    RowInit,
    extend_vocabulary,
    extended_config,
    row_statistics,
)


@pytest.fixture(scope="module")
def mmada(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extend") / "mmada"
    return write_checkpoint(folder, tiny_config(MMadaConfig), max_shard_bytes=300_000)


def tensors_of(folder):
    return dict(checkpoint.iter_tensors(folder))


def test_mean_of_the_specification(monkeypatch):
    old = torch.tensor([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    for slice_bytes in (1, 2**20):
        monkeypatch.setattr(vocab, "SLICE_BYTES", slice_bytes)
        mean, deviation = row_statistics(torch.cat((old, torch.full((2, 2), 9.0))), 4)
        assert mean.tolist() == [1, 1]
        assert deviation.tolist() == [1, 1]


def test_sizes_of_the_published_checkpoints():
    """LLaDA 126,464 rows → MMaDA 134,656 → Dynin-Omni 138,752."""
    mmada = extended_config(LLaDAConfig(), ExtendOptions(num_image_codes=8_192))
    assert (type(mmada), mmada.vocab_size) == (MMadaConfig, 134_656)
    dynin = extended_config(mmada, ExtendOptions(num_speech_units=4_096))
    assert (type(dynin), dynin.vocab_size) == (DyninOmniConfig, 138_752)
    assert dynin.vocabulary == DyninOmniConfig().vocabulary


@pytest.mark.parametrize("keep_padding", [False, True])
def test_mean_rows(mmada, tmp_path, keep_padding):
    before = CheckpointReader(mmada)
    assert before.num_rows == 640
    used = before.config.vocabulary.num_used
    options = ExtendOptions(num_speech_units=100, init=RowInit.MEAN, keep_padding=keep_padding)
    rows = extend_vocabulary(mmada, tmp_path / "out", options)
    assert rows == range(640 if keep_padding else used, 768)
    old, new = tensors_of(mmada), tensors_of(tmp_path / "out")
    for name in old.keys() - set(TABLES):
        assert torch.equal(old[name], new[name])
    for name in TABLES:
        assert torch.equal(new[name][: rows.start], old[name][: rows.start])
        mean = old[name][: rows.start].double().mean(0).float()
        torch.testing.assert_close(new[name][rows.start], mean)
        assert (new[name][rows.start :] == new[name][rows.start]).all()


def test_configuration_is_rewritten(mmada, tmp_path):
    extend_vocabulary(mmada, tmp_path / "out", ExtendOptions(num_speech_units=100))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vocab_size"] == written["embedding_size"] == 768
    assert written["speech_codebook_size"] == 100
    assert written["codebook_size"] == written["image_codebook_size"] == 16
    assert written["model_type"] == "dynin_omni"
    assert written["architectures"] == ["DyninOmniModelLM"]
    assert written["rope_theta"] == 10_000.0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert load_reference(tmp_path / "out").config.vocabulary.num_speech_units == 100


def test_noise_has_the_asked_for_deviation(mmada, tmp_path):
    options = ExtendOptions(num_speech_units=2_000, noise_scale=0.25, seed=3)
    rows = extend_vocabulary(mmada, tmp_path / "out", options)
    old, new = tensors_of(mmada), tensors_of(tmp_path / "out")
    for name in TABLES:
        kept = old[name][: rows.start]
        fresh = (new[name][rows.start :] - kept.mean(0)) / kept.std(0, correction=0)
        # About 2,000 x 64 draws: the deviation is within 1 % of 0.25 (five standard errors).
        assert fresh.std().item() == pytest.approx(0.25, rel=0.01)
        assert len(new[name][rows.start :].unique(dim=0)) == len(rows)
    extend_vocabulary(mmada, tmp_path / "again", options)
    for name, tensor in tensors_of(tmp_path / "again").items():
        assert torch.equal(tensor, new[name])


def test_codebook_projection_keeps_neighbours(mmada, tmp_path):
    codebook = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    codebook[1] = codebook[0] + 0.01
    options = ExtendOptions(
        num_speech_units=60, init=RowInit.CODEBOOK_PROJECTION, noise_scale=0.5, keep_padding=False
    )
    extend_vocabulary(mmada, tmp_path / "out", options, codebook=codebook)
    first = tiny_config(MMadaConfig).vocabulary.num_used
    for name, table in tensors_of(tmp_path / "out").items():
        if name not in TABLES:
            continue
        kept, rows = table[:first], table[first : first + 60]
        mean = kept.mean(0)
        standard = (rows - mean) / kept.std(0, correction=0)
        # Linear in the code vectors: at most as many dimensions as they have.
        assert torch.linalg.matrix_rank(standard, rtol=1e-3) <= 24
        assert standard.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.2)
        gap = torch.cdist(standard, standard)
        assert gap[0, 1] < 0.05 * gap[0, 2:].min()
        padding = table[first + 60 :]
        torch.testing.assert_close(padding, mean.expand_as(padding))


def test_codebook_skips_codes_in_kept_padding(mmada, tmp_path):
    """With kept padding, row r still starts as the vector of code r - first code."""
    codebook = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    used = tiny_config(MMadaConfig).vocabulary.num_used
    options = ExtendOptions(
        num_speech_units=100, init=RowInit.CODEBOOK_PROJECTION, keep_padding=True
    )
    rows = extend_vocabulary(mmada, tmp_path / "out", options, codebook=codebook)
    assert rows.start == 640
    table = tensors_of(tmp_path / "out")[checkpoint.EMBEDDING]
    kept = table[:640]
    fresh = (table[640 : used + 100] - kept.mean(0)) / kept.std(0, correction=0)
    vectors = (codebook - codebook.mean(0))[640 - used :]
    solved = torch.linalg.lstsq(vectors, fresh).solution
    torch.testing.assert_close(vectors @ solved, fresh, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("keep_padding", [False, True])
def test_again_changes_nothing(mmada, tmp_path, keep_padding):
    options = ExtendOptions(num_speech_units=100, keep_padding=keep_padding)
    extend_vocabulary(mmada, tmp_path / "once", options)
    assert not extend_vocabulary(tmp_path / "once", tmp_path / "twice", options)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_bfloat16_stays(tmp_path):
    write_checkpoint(tmp_path / "a", tiny_config(LLaDAConfig), dtype=torch.bfloat16)
    extend_vocabulary(tmp_path / "a", tmp_path / "b", ExtendOptions(num_image_codes=200))
    old, new = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert torch.equal(new[checkpoint.HEAD][:589], old[checkpoint.HEAD][:589])


def test_refusals(mmada, tmp_path):
    out = tmp_path / "out"

    def refused(match, codebook=None, source=mmada, **options):
        with pytest.raises(ValueError, match=match):
            extend_vocabulary(source, out, ExtendOptions(**options), codebook=codebook)
        assert not out.exists()

    refused("8 image codes are fewer than the 16", num_image_codes=8)
    refused("noise_scale=0 must be above 0", noise_scale=0)
    projection = {"init": RowInit.CODEBOOK_PROJECTION, "num_speech_units": 9}
    refused("needs a codebook", **projection)
    refused("8 vectors for 9 added", torch.zeros(8, 2), **projection)
    refused("one modality at a time", torch.zeros(8, 2), num_image_codes=20, **projection)
    refused("reads no codebook", torch.zeros(8, 2), num_speech_units=8)
    dynin = write_checkpoint(tmp_path / "dynin", tiny_config(DyninOmniConfig))
    refused("would move the ids of 12 speech units", source=dynin, num_image_codes=20)


def test_refuses_a_tied_checkpoint_and_integers(tmp_path, mmada):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_bytes((mmada / "config.json").read_bytes())
    tensors = {name: tensor.clone() for name, tensor in tensors_of(mmada).items()}
    head = tensors.pop(checkpoint.HEAD)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: model\.transformer\.ff_out\.weight"):
        extend_vocabulary(folder, tmp_path / "out", ExtendOptions(num_speech_units=5))
    save_file(tensors | {checkpoint.HEAD: head.to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"ff_out\.weight is stored as I8"):
        CheckpointReader(folder)


def test_command(mmada, tmp_path, capsys):
    save_file({"units": torch.randn(30, 4)}, tmp_path / "units.safetensors")
    command = ["extend-vocab", str(mmada), str(tmp_path / "out"), "--speech-units", "30"]
    projection = ["--init", "codebook-projection", "--codebook"]
    file = str(tmp_path / "units.safetensors")
    assert cli.main([*command, *projection, file, "nothing"]) == 1
    assert "no readable tensor 'nothing'" in capsys.readouterr().err
    assert cli.main([*command, *projection, file, "units"]) == 0
    assert "rows 605 to 639 initialised" in capsys.readouterr().out
    command[1:3] = [str(tmp_path / "out"), str(tmp_path / "out2")]
    assert cli.main(command) == 0
    assert "nothing to initialise" in capsys.readouterr().out
