"""`vllm-dynin train`: a LLaDA checkpoint becomes an omnimodal one, by commands alone."""

import dataclasses
import json

import pytest
import torch
from helpers.tiny_checkpoint import random_tensors, tiny_config
from helpers.tiny_tokenizer import make_tokenizer
from helpers.training_runs import DIRECTIONS, record

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.entrypoints.cli import main
from vllm_dynin.reference.backbone import load_reference

STEPS = "train.num_steps=4"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A text-only LLaDA checkpoint."""
    folder = tmp_path_factory.mktemp("backbone") / "llada"
    config = tiny_config(LLaDAConfig, num_heads=1)
    checkpoint.save_checkpoint(folder, config, random_tensors(config), make_tokenizer())
    return folder


@pytest.fixture(scope="module")
def omni(backbone):
    """The same with rows for image codes and speech units."""
    images, both = backbone.with_name("images"), backbone.with_name("omni")
    assert main(["extend-vocab", str(backbone), str(images), "--image-codes", "16"]) == 0
    assert main(["extend-vocab", str(images), str(both), "--speech-units", "12"]) == 0
    config = json.loads((both / "config.json").read_text())
    config |= {"image_text_block": 40, "speech_text_block": 120}
    (both / "config.json").write_text(json.dumps(config))
    return both


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Records of every direction as JSON lines, and the file that names them."""
    folder = tmp_path_factory.mktemp("data")
    tasks = {}
    for task in DIRECTIONS:
        rows = []
        for number in range(12):
            values = dataclasses.asdict(record(task, number))
            if task is Task.VIDEO_TO_TEXT:
                values["video"] = values.pop("images")
            values["speech"] = values.pop("units")
            rows.append(
                {key: value for key, value in values.items() if value not in (None, (), "")}
            )
        file = folder / f"{task.value}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks[task.value] = {"sources": [{"path": file.name}]}
    named = folder / "data.json"
    named.write_text(json.dumps({"tasks": tasks}))
    return named


def train(*arguments):
    return main(["train", *map(str, arguments)])


def test_a_llada_backbone_is_trained_in_all_directions(omni, data, tmp_path, capsys):
    out = tmp_path / "run"
    given = ("debug", "--from", omni, "--data", data, "--out", out, "--save-every", 2, STEPS)
    watched = ("--validation", data, "--validation-records", 2, "--generate", 1)
    assert train(*given, *watched, "--generate-steps", 1, "--log-every", 1) == 0
    printed = capsys.readouterr().out
    assert "train.num_steps = 4" in printed and "tasks.t2i.policy.dropout = 0.1" in printed
    assert (out / "settings.txt").read_text() in printed + "\n"
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    trained = {name for line in logged for name in line if name.startswith("loss/")}
    assert trained == {f"loss/{task}" for task in DIRECTIONS}
    assert {f"validation/right/{task}" for task in DIRECTIONS} <= logged[-1].keys()

    final = load_reference(out / "final")
    assert final.config.model_type == "dynin_omni"
    assert final.head_weight.dtype == torch.bfloat16
    started = load_reference(omni, torch.bfloat16)
    assert not torch.equal(final.head_weight, started.head_weight)

    exported = tmp_path / "exported"
    source = out / "checkpoints" / "step-00000004"
    assert main(["export", str(source), str(exported), "--dtype", "float32"]) == 0
    master = load_reference(exported)
    assert torch.equal(master.head_weight.bfloat16(), final.head_weight)
    assert main(["export", str(source), str(tmp_path / "ema"), "--average"]) == 1
    assert "has no moving average" in capsys.readouterr().err


def test_a_run_is_resumed_by_its_own_command(omni, data, tmp_path, capsys):
    """A run of four steps, and one that is started twice: two steps, then all four."""
    given = ("debug", "--from", omni, "--data", data, "--save-every", 2, "--log-every", 1)
    assert train(*given, "--out", tmp_path / "whole", STEPS) == 0
    assert train(*given, "--out", tmp_path / "cut", "--resume", STEPS) == 0  # begins
    for path in ("checkpoints/step-00000004", "final"):
        (tmp_path / "cut" / path).rename(tmp_path / "cut" / path.replace("step", "gone"))
    assert train(*given, "--out", tmp_path / "cut", STEPS) == 1
    assert "holds a run at step 2; resume it" in capsys.readouterr().err
    assert train(*given, "--out", tmp_path / "cut", "--resume", STEPS) == 0
    one, other = (load_reference(tmp_path / name / "final") for name in ("whole", "cut"))
    for weight, twin in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, twin)


def test_one_direction_alone_starts_from_the_text_model(backbone, data, tmp_path):
    only = ("--only", "t2t")
    text = json.loads(data.read_text())
    text["tasks"] = {"t2t": text["tasks"]["t2t"]}
    file = data.with_name("text.json")
    file.write_text(json.dumps(text))
    out = tmp_path / "run"
    arguments = ("debug", "--from", backbone, "--data", file, "--out", out)
    assert train(*arguments, *only, "train.num_steps=1", "global_batch=4") == 0
    assert load_reference(out / "final").config.model_type == "llada"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage9"], "there is no stage 'stage9'"),
        (["debug", "train.learning_rat=1"], "did you mean train.learning_rate?"),
        (["debug", "--only", "v2s"], "debug has no direction v2s; it has"),
        (["debug", "train.is_packed=maybe"], "this setting takes bool"),
        (["debug"], "has no image codes, which"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_done(
    backbone, data, tmp_path, capsys, arguments, message
):
    out = tmp_path / "run"
    assert train(*arguments, "--from", backbone, "--data", data, "--out", out) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("vllm-dynin train: ")
    assert not out.exists()


def test_skipped_samples_are_counted_and_listed(omni, data, tmp_path):
    """One row in twelve has speech that is no speech."""
    values = json.loads(data.read_text())
    source = data.with_name("s2t.jsonl").read_text()
    broken = json.loads(source.splitlines()[0]) | {"speech": 3, "key": "broken"}
    data.with_name("broken.jsonl").write_text(source + json.dumps(broken) + "\n")
    values["tasks"]["s2t"]["sources"] = [{"path": "broken.jsonl"}]
    file = data.with_name("broken.json")
    file.write_text(json.dumps(values | {"max_bad_share": 0.5}))
    out = tmp_path / "run"
    given = ("debug", "--from", omni, "--data", file, "--out", out, "--log-every", 1)
    assert train(*given, "train.num_steps=8") == 0
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    (entry,) = set((out / "skipped-00000.jsonl").read_text().splitlines())
    assert last["skipped/broken.jsonl"] >= 1
    assert json.loads(entry)["kind"] == "fields" and "3 is not a medium" in entry


def test_amounts_are_settings_of_the_stage(omni, data, tmp_path, capsys):
    values = json.loads(data.read_text())
    values["tasks"]["t2t"]["rows"] = 4
    file = data.with_name("amounts.json")
    file.write_text(json.dumps(values))
    assert train("debug", "--from", omni, "--data", file, "--out", tmp_path / "run") == 1
    assert "t2t of the data sets rows; how much" in capsys.readouterr().err
    del values["tasks"]["t2t"]
    file.write_text(json.dumps(values))
    assert train("debug", "--from", omni, "--data", file, "--out", tmp_path / "run") == 1
    assert "debug trains t2t, for which the data name no source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "option"), [("tiny-text", "--per-kind"), ("tiny-long", "--per-task")]
)
def test_tiny_recipes_keep_their_own_options(capsys, recipe, option):
    with pytest.raises(SystemExit) as stopped:
        main(["train", recipe, "--help"])
    assert stopped.value.code == 0
    assert option in capsys.readouterr().out
