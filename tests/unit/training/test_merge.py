"""Merging: rows of each strategy, dtypes, refusals, memory, and the command."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.tiny_checkpoint import random_tensors, tiny_config, write_checkpoint

from vllm_dynin import checkpoint
from vllm_dynin.config import DyninOmniConfig, MMadaConfig
from vllm_dynin.entrypoints import cli
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext import vocab
from vllm_dynin.training_ext.merge import (
    MAX_SHARD_BYTES,
    STAGE1_CONTROLS,
    MergeOptions,
    RowSource,
    Strategy,
    merge,
    merged_tensors,
    peak_bytes,
    plan_merge,
    row_segments,
)
from vllm_dynin.training_ext.vocab import CheckpointReader

TABLE0 = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
TABLE1 = torch.tensor([[11.0, 12], [13, 14], [15, 16], [17, 18]])


def apply_segments(segments, weight=0.6):
    rows = []
    for low, high, source in segments:
        for row in range(low, high):
            rows.append(
                {
                    RowSource.BACKBONE: lambda r: TABLE0[r],
                    RowSource.STAGE1: lambda r: TABLE1[r],
                    RowSource.MERGED: lambda r: weight * TABLE0[r] + (1 - weight) * TABLE1[r],
                }[source](row)
            )
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("changes", "boundary", "expected"),
    [
        ({"strategy": Strategy.SHARED}, 3, [[5, 6], [7, 8], [9, 10], [17, 18]]),
        ({"strategy": Strategy.STAGE1_ONLY}, 3, TABLE1.tolist()),
        ({}, 3, [[1, 2], [3, 4], [5, 6], [17, 18]]),
        ({"extra_rows_from_stage1": (1,)}, 3, [[1, 2], [13, 14], [5, 6], [17, 18]]),
        ({}, 2, [[1, 2], [3, 4], [15, 16], [17, 18]]),
    ],
)
def test_rows_of_the_specification(changes, boundary, expected):
    segments = row_segments(3, 4, boundary, MergeOptions(**changes))
    torch.testing.assert_close(apply_segments(segments), torch.tensor(expected, dtype=torch.float))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A backbone with image codes and its descendant with speech units and more rows."""
    root = tmp_path_factory.mktemp("merge")
    write_checkpoint(root / "backbone", tiny_config(MMadaConfig), seed=1, max_shard_bytes=300_000)
    config = tiny_config(DyninOmniConfig)
    config.vocab_size += 128
    tensors = random_tensors(config, 2)
    tokenizer = CheckpointReader(root / "backbone")
    checkpoint.save_checkpoint(root / "stage1", config, tensors, tokenizer, max_shard_bytes=200_000)
    assert (root / "stage1" / checkpoint.INDEX_FILE).is_file()
    return root


def tensors_of(folder):
    return dict(checkpoint.iter_tensors(folder))


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("slice_bytes", [1, 5_000, 2**26])
def test_whole_checkpoints(folders, tmp_path, monkeypatch, strategy, slice_bytes):
    monkeypatch.setattr(vocab, "SLICE_BYTES", slice_bytes)
    extra = (7,)
    options = MergeOptions(strategy=strategy, backbone_weight=0.4, extra_rows_from_stage1=extra)
    plan = merge(folders / "backbone", folders / "stage1", tmp_path / "out", options)
    old, new, got = (tensors_of(path) for path in (*[folders / "backbone", folders / "stage1"],
                                                   tmp_path / "out"))  # fmt: skip
    boundary = DyninOmniConfig.from_dict(
        json.loads((folders / "stage1" / "config.json").read_text())
    ).vocabulary.speech.start
    assert plan.row_boundary == boundary < len(old[checkpoint.EMBEDDING])
    for name, tensor in got.items():
        if name not in vocab.TABLES:
            torch.testing.assert_close(tensor, 0.4 * old[name] + 0.6 * new[name])
            continue
        assert torch.equal(tensor[boundary:], new[name][boundary:])
        assert torch.equal(tensor[7], new[name][7])
        rest = [row for row in range(boundary) if row != 7]
        blended = 0.4 * old[name][:boundary] + 0.6 * new[name][:boundary]
        wanted = {
            Strategy.SHARED: blended,
            Strategy.STAGE1_ONLY: new[name],
            Strategy.DISENTANGLED: old[name],
        }[strategy]
        torch.testing.assert_close(tensor[rest], wanted[rest])
    assert got.keys() == new.keys()


def test_result_loads_and_carries_the_tokenizer(folders, tmp_path):
    merge(folders / "backbone", folders / "stage1", tmp_path / "out", max_shard_bytes=100_000)
    assert (tmp_path / "out" / checkpoint.INDEX_FILE).is_file()
    model = load_reference(tmp_path / "out")
    rows = CheckpointReader(folders / "stage1").num_rows
    assert model.state_dict()[checkpoint.HEAD].shape[0] == rows
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = (folders / "stage1" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == source


@pytest.mark.parametrize(("weight", "which"), [(1.0, "backbone"), (0.0, "stage1")])
def test_the_ends_are_exact(folders, tmp_path, weight, which):
    options = MergeOptions(strategy=Strategy.SHARED, backbone_weight=weight)
    merge(folders / "backbone", folders / "stage1", tmp_path / "out", options)
    got, end = tensors_of(tmp_path / "out"), tensors_of(folders / which)
    assert all(torch.equal(got[name], end[name]) for name in got if name not in vocab.TABLES)


def test_bfloat16_is_blended_in_float32_and_rounded_once(tmp_path):
    config = tiny_config(DyninOmniConfig)
    write_checkpoint(tmp_path / "a", config, seed=1, dtype=torch.bfloat16)
    write_checkpoint(tmp_path / "b", config, seed=2, dtype=torch.bfloat16)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    old, new, got = (tensors_of(tmp_path / name) for name in ("a", "b", "out"))
    differs = 0
    for name in got.keys() - set(vocab.TABLES):
        exact = 0.6 * old[name].double() + 0.4 * new[name].double()
        # Half a unit in the last place of bfloat16's 8 bits, plus float32's own noise.
        bound = exact.abs() * 2**-8 * 1.001 + 1e-7
        assert ((got[name].double() - exact).abs() <= bound).all()
        twice = (old[name] * 0.6) + (new[name] * 0.4)
        differs += int(((twice.double() - exact).abs() > bound).sum())
        assert got[name].dtype == torch.bfloat16
    assert differs > 0  # rounding along the way would break the bound


def test_refuses_other_shapes_by_name(tmp_path, folders):
    config = tiny_config(DyninOmniConfig)
    config.mlp_hidden_size = 64
    write_checkpoint(tmp_path / "other", config)
    with pytest.raises(ValueError, match=r"blocks\.0\.ff_out\.weight \(64, 128\) against \(64, 64"):
        merge(folders / "backbone", tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("rope_theta", 20_000.0), ("n_heads", 1), ("image_codebook_size", 15)]
)
def test_refuses_other_meanings_of_equal_shapes(tmp_path, folders, field, value):
    config = tiny_config(DyninOmniConfig)
    setattr(config, field, value)
    if field == "n_heads":
        config.n_kv_heads = value
    if field == "image_codebook_size":
        config.codebook_size = value
    write_checkpoint(tmp_path / "other", config)
    with pytest.raises(ValueError, match=f"config {field}: .* against {value}"):
        merge(folders / "backbone", tmp_path / "other", tmp_path / "out")


def test_refuses_swapped_checkpoints_and_bad_options(folders, tmp_path):
    with pytest.raises(ValueError, match="not swapped"):
        merge(folders / "stage1", folders / "backbone", tmp_path / "out")
    with pytest.raises(ValueError, match="row_boundary=99999 with"):
        options = MergeOptions(row_boundary=99999)
        merge(folders / "backbone", folders / "stage1", tmp_path / "out", options)
    with pytest.raises(ValueError, match="extra row 99999 is outside"):
        options = MergeOptions(extra_rows_from_stage1=(99999,))
        merge(folders / "backbone", folders / "stage1", tmp_path / "out", options)
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="outside 0 … 1"):
            MergeOptions(backbone_weight=weight)
    with pytest.raises(ValueError, match="row -1 is negative"):
        MergeOptions(row_boundary=-1)


def test_refuses_values_that_are_not_finite(folders, tmp_path):
    config = tiny_config(DyninOmniConfig)
    tensors = random_tensors(config)
    tensors[checkpoint.FINAL_NORM][3] = float("inf")
    checkpoint.save_checkpoint(tmp_path / "bad", config, tensors)
    with pytest.raises(ValueError, match=r"ln_f\.weight are not finite"):
        merge(folders / "backbone", tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_plan_names_control_tokens_that_go_back(folders):
    readers = CheckpointReader(folders / "backbone"), CheckpointReader(folders / "stage1")
    assert plan_merge(*readers, MergeOptions()).reverted_controls == STAGE1_CONTROLS
    vocabulary = readers[1].config.vocabulary
    extra = tuple(getattr(vocabulary, name) for name in STAGE1_CONTROLS[1:])
    kept = plan_merge(*readers, MergeOptions(extra_rows_from_stage1=extra))
    assert kept.reverted_controls == STAGE1_CONTROLS[:1]
    assert plan_merge(*readers, MergeOptions(strategy=Strategy.SHARED)).reverted_controls == ()


@pytest.mark.parametrize("width", [2, 4])
def test_bound_of_the_real_size_is_below_4_gib(width):
    shapes = checkpoint.expected_shapes(DyninOmniConfig(), 138_752)
    sizes = [torch.Size(shape).numel() * width for shape in shapes.values()]
    assert sum(sizes) == 8_116_244_480 * width
    assert peak_bytes(sizes, MAX_SHARD_BYTES) < 4 * 2**30


_MEASURE = """
import sys, torch
torch.set_num_threads(1)
from vllm_dynin.training_ext import merge, vocab
merge.SLICE_BYTES = vocab.SLICE_BYTES = 2**20
def status(field):  # ru_maxrss would start at the parent's; this is the process's own
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
merge.merge(*sys.argv[5:8])  # a small one first: what is imported on first use is no part of it
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = status("VmRSS")
shard = int(sys.argv[4])
plan = merge.merge(*sys.argv[1:4], max_shard_bytes=shard)
print(status("VmHWM") - before, plan.peak_bytes, plan.output_bytes)
"""


def test_measured_memory_stays_below_the_bound(tmp_path, folders):
    """Peak resident memory of a fresh process, pages of the input files included."""
    sizes = {"d_model": 512, "n_heads": 8, "n_layers": 10, "mlp_hidden_size": 1536}
    config = DyninOmniConfig(
        **sizes, text_vocab_size=9_000, codebook_size=64, speech_codebook_size=32
    )
    for seed, name in enumerate(("a", "b")):
        checkpoint.save_checkpoint(tmp_path / name, config, random_tensors(config, seed))

    def measure(out, shard_bytes):
        small = (folders / "backbone", folders / "stage1", tmp_path / f"small {out}")
        large = (tmp_path / "a", tmp_path / "b", tmp_path / out)
        arguments = [*map(str, large), str(shard_bytes), *map(str, small)]
        # glibc keeps freed blocks below a threshold that grows up to 32 MiB. Every matrix of an 8B
        # model is larger than that, so a fixed threshold gives this small one the same treatment.
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        )
        assert done.returncode == 0, done.stderr
        return map(int, done.stdout.split())

    grown, bound, total = measure("streamed", 8 * 2**20)
    assert bound < total / 3
    slack = 4 * 2**20  # small objects
    assert grown < bound + slack
    # The measure sees what is held: one shard of everything is the whole result.
    held, _, _ = measure("held", 10**9)
    assert held > total > bound + slack


def test_tensors_come_one_at_a_time(folders):
    readers = CheckpointReader(folders / "backbone"), CheckpointReader(folders / "stage1")
    pairs = merged_tensors(*readers, plan_merge(*readers, MergeOptions()))
    assert next(pairs)[0] == checkpoint.EMBEDDING
    assert [name for name, _ in pairs][-1] == checkpoint.HEAD


def test_command(folders, tmp_path, capsys):
    paths = [str(folders / "backbone"), str(folders / "stage1"), str(tmp_path / "out")]
    assert cli.main(["merge", *paths, "--dry-run"]) == 0
    assert "v2t" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.main(["merge", *paths, "--extra-rows", "s2t,soa,eoa,t2s,v2t,3"]) == 0
    assert "note:" not in capsys.readouterr().out
    got, new = tensors_of(tmp_path / "out"), tensors_of(folders / "stage1")
    row = tiny_config(DyninOmniConfig).vocabulary.soa
    for name in vocab.TABLES:
        assert torch.equal(got[name][[3, row]], new[name][[3, row]])
    assert cli.main(["merge", *paths]) == 1
    assert "exists" in capsys.readouterr().err
    assert cli.main(["merge", *paths, "--extra-rows", "image"]) == 1
    assert "neither an id nor a control token" in capsys.readouterr().err
