"""What a stage and its data say of the mathematics of a run: changed settings are seen."""

import json

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext import settings
from vllm_dynin.training_ext.data import open_mixture
from vllm_dynin.training_ext.stages import debug, stage1
from vllm_dynin.training_ext.trainer.stage_run import mixture_config, run_identity


@pytest.fixture
def data(tmp_path):
    """A file a direction, of one row each; the records are never read."""
    (tmp_path / "rows.jsonl").write_text('{"text": "q", "answer": "a"}\n')
    source = {"path": str(tmp_path / "rows.jsonl")}
    return {"tasks": {task.value: {"sources": [dict(source)]} for task in debug().tasks}}


def identity(data, stage=None, world_size=1):
    stage = stage or debug()
    mixed = mixture_config(stage, data, world_size)
    found = run_identity(stage, mixed, world_size) | open_mixture(mixed).identity()
    return json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("global_batch", "28"),
        ("has_even_seats", "false"),
        ("tasks.t2i.objective.coefficient", "0.1"),
        ("tasks.s2t.policy.num_targets", "32"),
        ("tasks.t2i.policy.dropout", "0.2"),
        ("tasks.mmu.share", "3"),
    ],
)
def test_a_changed_setting_is_seen(data, setting, value):
    other = identity(data, settings.override(debug(), {setting: value}))
    assert [name for name, old in identity(data).items() if other[name] != old] == [setting]


def test_notes_about_the_data_and_the_machine_are_not_part_of_it(data):
    changes = {"tasks.t2i.resolution": "128", "num_gpus": "8", "train.num_micro_batches": "2"}
    assert identity(data, settings.override(debug(), changes)) == identity(data)
    assert identity(data, world_size=2) == identity(data)  # 14 rows over two ranks


def test_sizes_weights_and_reading_of_sources(data, tmp_path):
    before = identity(data)
    assert before["data.t2t"] == {"rows.jsonl": {"rows": 1, "weight": 1.0}}
    (source,) = data["tasks"]["t2t"]["sources"]
    for change, name in (
        ({"weight": 2.0}, "data.t2t"),
        ({"name": "other"}, "data.t2t"),
        ({"adapter": "pair"}, "data.t2t.read"),
        ({"thinking": True}, "data.t2t.read"),
    ):
        data["tasks"]["t2t"]["sources"] = [source | change]
        assert identity(data)[name] != before[name], change
    data["tasks"]["t2t"]["sources"] = [source]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"text": "q", "answer": "b"}\n')
    assert identity(data)["data.t2t"]["rows.jsonl"]["rows"] == 2


def test_rows_of_each_rank_count_over_all(data):
    stage = stage1("release")
    data = {"tasks": {task.value: data["tasks"][task.value] for task in stage.tasks}}
    one, two = (identity(data, stage, world_size) for world_size in (1, 2))
    name = f"tasks.{Task.VIDEO_TO_TEXT.value}.rows"
    assert (one[name], two[name]) == (1, 2)
