"""Stages: the paper's and the release's numbers, and samples of the lengths they say."""

import random
import re
from pathlib import Path

import pytest

import vllm_dynin
from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.entrypoints import cli
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.training_ext import settings
from vllm_dynin.training_ext.collate import collate
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.losses import mixed_loss
from vllm_dynin.training_ext.records import Record, make_sample
from vllm_dynin.training_ext.stages import STAGES, StageConfig, debug, stage1, stage2, stage3
from vllm_dynin.training_ext.stages.recipes import image_tokens

T2T, I2T, V2T, S2T, T2S, T2I, I2I = (
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
)
SEVEN = {T2T, I2T, V2T, S2T, T2S, T2I, I2I}
ALL = [(name, v) for name in STAGES for v in ("paper", "release") if (name, v) != ("debug", v)]
ALL.append(("debug", "paper"))


def of(name, variant):
    return STAGES[name](variant)


def record(task, stage):
    """A record of the stage's size, with short texts."""
    one = stage.tasks[task]
    image = (1,) * image_tokens(one.resolution) if one.resolution else ()
    fields = {
        T2T: {"text": "red", "answer": "blue"},
        I2T: {"images": (image,), "text": "what?", "answer": "a cube"},
        V2T: {"images": (image,) * (one.num_frames or 0), "text": "what?", "answer": "a cube"},
        S2T: {"units": (1,) * (one.max_units or 0), "answer": "a table"},
        T2S: {"text": "a table", "units": (1,) * (one.max_units or 0)},
        T2I: {"text": "a cube", "target_image": image},
        I2I: {"text": "paint", "images": (image,), "target_image": image},
    }
    return Record(task=task, **fields[task])


@pytest.fixture(scope="module")
def config(tokenizer) -> DyninOmniConfig:
    return DyninOmniConfig(
        d_model=16,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=32,
        text_vocab_size=len(tokenizer),
        codebook_size=16,
        speech_codebook_size=16,
        image_text_block=128,
        speech_text_block=128,
    )


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tasks", "eos", "rate", "warmup", "gpus", "hours"),
    [
        ("stage1", {V2T, S2T, T2S}, "none", 1e-5, 3000, 32, 5_200),
        ("stage2", SEVEN, "all", 2e-5, 1000, 32, 34_560),
        ("stage3", SEVEN, "all", 2e-5, 1000, 40, 23_665),
    ],
)
def test_the_papers_table(name, tasks, eos, rate, warmup, gpus, hours):
    stage = of(name, "paper")
    assert set(stage.tasks) == tasks
    assert {policy.eos for policy in stage.policies.values()} == {eos}
    assert (stage.global_batch, stage.num_gpus, stage.gpu_hours) == (128, gpus, hours)
    train = stage.train
    assert (train.learning_rate, train.num_warmup_steps) == (rate, warmup)
    assert (train.betas, train.weight_decay, train.max_grad_norm) == ((0.9, 0.999), 0.1, 1.0)
    assert train.precision == "bf16"


@pytest.mark.parametrize(
    ("name", "resolutions", "frames", "seconds", "pairs"),
    [
        ("stage1", {V2T: 128}, 8, 17, {V2T: 10.7, S2T: 10, T2S: 10}),
        (
            "stage2",
            {I2T: 256, T2I: 336, I2I: 256, V2T: 224},
            5,
            20,
            {T2T: 1.6, I2T: 8, T2I: 10, I2I: 1.1, V2T: 3.2, S2T: 10, T2S: 10},
        ),
        (
            "stage3",
            {I2T: 480, T2I: 512, I2I: 336, V2T: 224},
            5,
            21,
            {T2T: 0.5, I2T: 0.4, T2I: 0.5, I2I: 0.5, V2T: 0.8, S2T: 0.2, T2S: 0.2},
        ),
    ],
)
def test_the_papers_data(name, resolutions, frames, seconds, pairs):
    tasks = of(name, "paper").tasks
    assert {t: one.resolution for t, one in tasks.items() if one.resolution} == resolutions
    assert {one.num_frames for one in tasks.values()} - {None} == {frames}
    assert {one.max_seconds for one in tasks.values()} - {None} == {seconds}
    assert tasks[T2S].max_units == 25 * seconds
    assert {t: one.million_pairs for t, one in tasks.items()} == pairs
    assert all(one.sources and one.share == 1 for one in tasks.values())


@pytest.mark.parametrize(
    ("name", "coefficients", "decay", "clip", "accumulated", "batch"),
    [
        ("stage1", {V2T: 1.0, S2T: 1.0, T2S: 1.0}, 0.1, 1.0, 1, 16),
        (
            "stage2",
            {T2I: 0.3, I2I: 0.3, T2T: 0.3, V2T: 0.6, S2T: 0.4, T2S: 0.4},
            0.01,
            1.0,
            2,
            64,
        ),
        ("stage3", {T2I: 1.0, T2T: 2.0, V2T: 0.5}, 0.01, 3.0, 8, 96),
    ],
)
def test_the_released_configurations(name, coefficients, decay, clip, accumulated, batch):
    stage = of(name, "release")
    assert {t: one.objective.coefficient for t, one in stage.tasks.items()} == coefficients
    train = stage.train
    assert (train.weight_decay, train.max_grad_norm) == (decay, clip)
    assert (train.num_micro_batches, train.min_learning_rate_ratio) == (accumulated, 0.0)
    assert train.seed == 10086
    rows = sum(one.rows / one.every for one in stage.tasks.values())
    assert rows * stage.num_gpus == stage.global_batch == batch
    # Video captions never learn to fill up; speech always does, against the paper.
    assert {t: p.eos for t, p in stage.policies.items()} == {
        t: "first" if t is V2T else "all" for t in coefficients
    }


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("stage1", {V2T: 643, S2T: 386, T2S: 385}),
        ("stage2", {V2T: 1698, S2T: 641, T2S: 640, T2I: 1154, I2I: 1015, T2T: 1024}),
        ("stage3", {V2T: 1238, T2I: 1154, T2T: 1024}),
    ],
)
def test_released_rows_have_the_released_lengths(name, lengths, config, tokenizer):
    stage = of(name, "release")
    context = stage.context(config, tokenizer)
    made = {
        task: len(make_sample(record(task, stage), context, random.Random(0)).ids)
        for task in stage.tasks
    }
    assert made == lengths


def test_paper_rows_have_room_for_the_longest_media(config, tokenizer):
    for stage in (stage1(), stage2(), stage3()):
        context = stage.context(config, tokenizer)
        for task, one in stage.tasks.items():
            sample = make_sample(record(task, stage), context, random.Random(0))
            if one.policy.row_length:
                assert len(sample.ids) == one.policy.row_length
            if one.policy.num_targets:
                assert sample.region_length == one.policy.num_targets


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_a_step_of_every_stage(name, variant, config, tokenizer):
    """One row of each direction of the stage, shrunk, through the model and back."""
    stage = of(name, variant)
    small = {}
    for task, one in stage.tasks.items():
        if one.resolution:
            small[f"tasks.{task.value}.resolution"] = "64"
        if one.policy.row_length and task is not S2T:
            small[f"tasks.{task.value}.policy.row_length"] = "300"
    stage = settings.override(stage, small)
    context = stage.context(config, tokenizer)
    batches = {
        task: collate(
            [make_sample(record(task, stage), context, random.Random(seed)) for seed in range(2)],
            keeps_padding=context.keeps_padding,
        )
        for task in stage.tasks
    }
    model = LLaDA(config)
    initialise(model, 0)
    losses = mixed_loss(model, batches, stage.objectives, stage.train.seed, 0)
    losses.total.backward()
    assert set(losses.per_task) == set(stage.tasks)
    assert losses.total.isfinite() and losses.total > 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- printing, overriding, mistakes ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_a_stage_can_be_printed_and_read_again(name, variant):
    stage = of(name, variant)
    lines = settings.render(stage).splitlines()
    again = settings.override(
        stage, settings.parse_overrides([line.replace(" = ", "=", 1) for line in lines])
    )
    assert again == stage


def test_stages_are_told_apart():
    found = settings.differences(stage2(), stage3())
    assert "tasks.t2i.resolution: 336 → 512" in found
    assert "num_gpus: 32 → 40" in found
    assert not any(line.startswith("train.") for line in found)
    released = settings.differences(stage2(), stage2("release"))
    assert "tasks.mmu: only in the first" in released
    assert "train.weight_decay: 0.1 → 0.01" in released
    assert settings.differences(stage1(), stage1()) == []


def test_command(capsys):
    assert cli.main(["stages"]) == 0
    assert "stage2:release  t2i i2i t2t v2t s2t t2s  (64 rows a step)" in capsys.readouterr().out
    assert cli.main(["stages", "stage1", "--set", "train.learning_rate=3e-5"]) == 0
    out = capsys.readouterr().out
    assert "train.learning_rate = 3e-05" in out and "tasks.v2t.policy.eos = none" in out
    assert cli.main(["stages", "stage1", "stage1:release"]) == 0
    assert "tasks.s2t.policy.eos: none → all" in capsys.readouterr().out
    assert cli.main(["stages", "debug", "--json"]) == 0
    assert '"tasks.t2i.policy.dropout": 0.1' in capsys.readouterr().out
    assert cli.main(["stages", "stage4"]) == 1
    assert "there is no stage 'stage4'" in capsys.readouterr().err
    assert cli.main(["stages", "debug:release"]) == 1
    assert "the release has none" in capsys.readouterr().err


def test_stages_that_make_no_sense():
    stage = debug()
    with pytest.raises(ValueError, match="mixes shares and rows"):
        settings.override(stage, {"tasks.t2t.share": "none", "tasks.t2t.rows": "1"})
    with pytest.raises(ValueError, match=r"share=1\.0 and rows=2"):
        settings.override(stage, {"tasks.t2t.rows": "2"})
    with pytest.raises(ValueError, match="every=1, phase=1"):
        settings.override(stage, {"tasks.t2t.phase": "1"})
    with pytest.raises(ValueError, match="resolution=0"):
        settings.override(stage, {"tasks.t2i.resolution": "0"})
    with pytest.raises(ValueError, match="debug has no direction"):
        StageConfig(
            name="debug",
            variant="paper",
            starts_from="",
            tasks={},
            train=stage.train,
            global_batch=1,
            num_gpus=1,
        )
    with pytest.raises(ValueError, match="100 pixels are not a multiple of 16"):
        image_tokens(100)


# --- the documentation ----------------------------------------------------------------------------


def test_every_switch_the_documentation_names_is_a_setting():
    page = (Path(vllm_dynin.__file__).parents[1] / "docs" / "training.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 45))
    known, number = settings.flatten(stage2()), 0
    for row in rows:
        part = ""
        for name, value in re.findall(r"`([\w.*]+)(?:=\"?(\w+)\"?)?`", row[5]):
            setting = f"{part}{name}" if name.startswith(".") else name
            part = setting.rpartition(".")[0]
            if setting.startswith(("objective.", "policy.")):
                setting = f"tasks.*.{setting}"
            setting = setting.replace("*", "v2t")
            assert setting in known, row
            if value:
                assert known[setting] != value
                settings.override(stage2(), {setting: value})
            number += 1
    assert number >= 30
