"""From a configuration and files to the rows of a training step."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_tokenizer import make_tokenizer
from helpers.training_data import DIGITS, every_direction, write_jsonl

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.training_ext.data import (
    ADAPTERS,
    BadKind,
    EncodeOptions,
    Encoder,
    Mixture,
    MixtureConfig,
    open_mixture,
    open_table,
    sample_length,
    stage_options,
)
from vllm_dynin.training_ext.data.adapters import find_adapter
from vllm_dynin.training_ext.data.tokenize import tokenize
from vllm_dynin.training_ext.data.tokenize_job import TokenizeJob
from vllm_dynin.training_ext.records import Record, SampleContext, SamplePolicy, make_sample
from vllm_dynin.training_ext.stages import debug, stage1, stage2, stage3
from vllm_dynin.training_ext.trainer.feed import RecordFeed

TASKS = ("t2t", "mmu", "v2t", "s2t", "t2s", "t2i", "i2i")


@pytest.fixture(scope="module")
def tokens(media: Path, codecs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real media of every direction, tokenised at the sizes of the debug stage."""
    manifest = write_jsonl(media / "config.jsonl", every_direction())
    out = tmp_path_factory.mktemp("tokens") / "set"
    sizes = EncodeOptions(
        image_resolution=64,
        generation_resolution=64,
        edit_resolution=64,
        video_resolution=32,
        video_frames=2,
    )
    checkpoint = str(codecs_folder)
    tokenize(TokenizeJob(data=str(manifest), out=out, checkpoint=checkpoint, options=sizes))
    return out


@pytest.fixture(scope="module")
def context() -> SampleContext:
    tokenizer = make_tokenizer()
    config = DyninOmniConfig(
        text_vocab_size=len(tokenizer), image_text_block=40, speech_text_block=80
    )
    return debug().context(config, tokenizer)


def values(tokens: Path, rows: int = 2) -> dict[str, Any]:
    source = {"path": str(tokens)}
    return {"seed": 3, "tasks": {task: {"rows": rows, "sources": [source]} for task in TASKS}}


def keys(step: dict[Task, list[Record]]) -> dict[str, list[str]]:
    return {task.value: [record.key for record in records] for task, records in step.items()}


def test_from_media_to_the_rows_of_a_step(tokens: Path, context: SampleContext) -> None:
    """Every direction, through the trainer's own feed; and again after resuming, bit for bit."""

    def feed() -> RecordFeed:
        mixture = open_mixture(values(tokens), measure=sample_length(context))
        return RecordFeed(mixture, context, debug().train)

    def rows(source: RecordFeed) -> dict[str, torch.Tensor]:
        (micro,) = source.next_step()
        return {task.value: batch.ids_BT for task, batch in micro.batches.items()}

    whole = feed()
    steps = [rows(whole) for _ in range(6)]
    assert set(steps[0]) == set(TASKS)
    before = feed()
    for _ in range(3):
        rows(before)
    after = feed()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for expected in steps[3:]:
        found = rows(after)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[task], expected[task]) for task in expected)


def test_a_manifest_is_encoded_on_the_way(tokens: Path, media: Path, codecs_folder: Path) -> None:
    """Without a pass of `tokenize` before it: the same records, from files in the manifest."""
    rows = [row for row in every_direction() if row["task"] == "t2i"]
    manifest = write_jsonl(media / "t2i.jsonl", rows)
    job = TokenizeJob(data=str(manifest), out=media, checkpoint=str(codecs_folder))
    config = {"tasks": {"t2i": {"rows": 10, "sources": [{"path": str(manifest)}]}}}
    with pytest.raises(ValueError, match="to train, run vllm-dynin tokenize"):
        open_mixture(config).next_step()
    encoder = Encoder(job.codecs(), job.encode_options())
    online = open_mixture(config, encoder=encoder).next_step()[Task.TEXT_TO_IMAGE]
    config["tasks"]["t2i"]["sources"] = [{"path": str(tokens)}]
    offline = open_mixture(config).next_step()[Task.TEXT_TO_IMAGE]
    assert {r.text: r.target_image for r in online} == {r.text: r.target_image for r in offline}
    assert {record.source for record in online} == {"t2i.jsonl"}


def test_several_sources_and_their_weights(tmp_path: Path, tokens: Path) -> None:
    pairs = [{"utt": f"word {index}", "units": [index, 1]} for index in range(40)]
    manifest = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    columns = {"text": "utt", "audio": "units"}
    sources = [
        {"path": str(tokens), "name": "digits", "weight": None},
        {"path": str(manifest), "adapter": "speech", "columns": columns, "weight": None},
    ]
    config = {"tasks": {"t2s": {"rows": 50, "sources": sources}}}
    drawn = open_mixture(config).next_step()[Task.TEXT_TO_SPEECH]
    # As if they lay one behind the other: 10 of 50 rows.
    assert 3 <= sum(record.source == "digits" for record in drawn) <= 19
    assert {record.source for record in drawn} == {"digits", "pairs.jsonl"}
    assert {record.text for record in drawn if record.source == "digits"} <= set(DIGITS)


def test_the_order_of_the_rows_can_be_kept(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{index}", "answer": "a"} for index in range(5)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), "adapter": "pair", "is_shuffled": False}
    mixture = open_mixture({"tasks": {"t2t": {"rows": 5, "sources": [source]}}})
    for _ in range(2):
        texts = [record.text for record in mixture.next_step()[Task.TEXT_TO_TEXT]]
        assert texts == [f"q{index}" for index in range(5)]


def test_a_row_of_several_pairs_gives_one_of_them_in_an_epoch(tmp_path: Path) -> None:
    """Edit or inverse edit with probability one half each, as the original draws them."""
    codes = [[index] * 4 for index in range(64)]
    rows = [
        {"source": code, "target": [9, 9, 9, 9], "edit": "there", "inverse": "back"}
        for code in codes
    ]
    path = write_jsonl(tmp_path / "edits.jsonl", rows)
    source = {"path": str(path), "adapter": "edit"}
    mixture = open_mixture({"tasks": {"i2i": {"rows": 64, "sources": [source]}}})
    epochs = [mixture.next_step()[Task.IMAGE_TO_IMAGE] for _ in range(8)]
    there = [sum(record.text == "there" for record in epoch) for epoch in epochs]
    assert 200 < sum(there) < 312  # of 512: 256 ± 5 standard deviations
    assert len(set(there)) > 1
    for epoch in epochs:  # every row once
        assert len({record.key.split("#")[0] for record in epoch}) == 64


def test_records_that_do_not_fit_never_reach_the_trainer(
    tmp_path: Path, context: SampleContext
) -> None:
    """Whatever instruction is drawn later: the longest one is measured."""
    long, short = "x" * 400, "a few words"
    rows = [{"text": long if index % 4 == 0 else short, "audio": [1, 2]} for index in range(40)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = {
        "max_bad_share": 0.0,
        "tasks": {"t2s": {"rows": 8, "sources": [{"path": str(path), "adapter": "speech"}]}},
    }
    mixture = open_mixture(config, measure=sample_length(context))
    for _ in range(10):
        for record in mixture.next_step()[Task.TEXT_TO_SPEECH]:
            for seed in range(12):
                make_sample(record, context, random.Random(seed))
    assert mixture.bad.num_bad["rows.jsonl", "does not fit"] >= 10


def test_lengths_are_those_of_the_rows(tokens: Path, context: SampleContext) -> None:
    policy = SamplePolicy(instructions=("one", "some more words than one"), max_filler=3)
    policies = {**context.policies, Task.SPEECH_TO_TEXT: policy}
    measure = sample_length(replace(context, policies=policies))
    context = replace(context, policies={**policies})
    record = Record(task=Task.SPEECH_TO_TEXT, answer="two", units=(1, 2, 3))
    lengths = [len(make_sample(record, context, random.Random(seed)).ids) for seed in range(200)]
    assert measure(record) == max(lengths) > min(lengths)


@pytest.mark.parametrize(
    ("stage", "task", "expected"),
    [
        (stage1(), Task.VIDEO_TO_TEXT, {"video_resolution": 128, "video_frames": 8}),
        (stage1(), Task.SPEECH_TO_TEXT, {"max_speech_seconds": 17.0, "max_units": 425}),
        (stage2(), Task.TEXT_TO_IMAGE, {"generation_resolution": 336}),
        (stage2("release"), Task.TEXT_TO_IMAGE, {"generation_resolution": 512}),
        (stage2(), Task.IMAGE_TO_IMAGE, {"edit_resolution": 256}),
        (stage3(), Task.IMAGE_TO_TEXT, {"image_resolution": 480}),
        (stage3(), Task.TEXT_TO_SPEECH, {"max_speech_seconds": 21.0}),
        (stage2("release"), Task.VIDEO_TO_TEXT, {"max_video_seconds": 10.0, "video_frames": 8}),
    ],
)
def test_sizes_of_a_stage(stage: Any, task: Task, expected: dict[str, Any]) -> None:
    options = stage_options(stage, task)
    assert {name: getattr(options, name) for name in expected} == expected
    with pytest.raises(ValueError, match="does not train ti2ti"):
        stage_options(stage, Task.TEXT_IMAGE_TO_TEXT_IMAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"t2x": {}}}, "direction 't2x' is unknown; known are t2t, mmu"),
        ({"tasks": {"t2t": {"rows": 1}}}, "needs at least one source"),
        (
            {"tasks": {"t2t": {"sources": [{"path": "."}]}}},
            "exactly one of rows, tokens and weight",
        ),
        ({"tasks": {"t2t": {"rows": 1, "sources": [{"pth": "a"}]}}}, "SourceSpec has no 'pth'"),
        ({"tasks": {"t2t": {"rws": 1, "sources": [{"path": "a"}]}}}, "Schedule has no 'rws'"),
        ({"seeds": 1}, "MixtureConfig has no 'seeds'"),
        ({"tasks": {"t2t": {"rows": 1, "sources": [{"path": "/none"}]}}}, "no data there"),
        ({"tasks": {"t2t": {"rows": 1, "sources": [{"path": "a", "weight": 0}]}}}, "weight=0"),
        ({"tasks": {}}, "at least one direction"),
        ({"max_bad_share": 2}, "max_share=2"),
    ],
)
def test_what_a_configuration_gets_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_mixture(change)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    source = {"path": str(tmp_path / "none.jsonl")}
    with pytest.raises(ValueError, match="has no rows"):
        open_mixture({"tasks": {"t2t": {"rows": 1, "sources": [source]}}})


def test_a_set_of_another_direction_is_refused(tokens: Path, tmp_path: Path) -> None:
    rows = [{"task": "t2t", "text": "q", "answer": "a"}] * 300
    path = write_jsonl(tmp_path / "text.jsonl", rows)
    mixture: Mixture = open_mixture(
        MixtureConfig.from_dict({"tasks": {"mmu": {"rows": 1, "sources": [{"path": str(path)}]}}})
    )
    with pytest.raises(ValueError, match="a t2t record where mmu is wanted"):
        mixture.next_step()


PAGE = (Path(__file__).parents[4] / "docs" / "training-data.md").read_text()


def test_documented_manifests_and_mixtures_are_accepted(tmp_path: Path) -> None:
    rows, switched, mixture = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "rows.jsonl").write_text(rows)
    table, adapter = open_table(tmp_path / "rows.jsonl"), find_adapter("record")
    made = [adapter(table[index], Task.TEXT_TO_TEXT)[0].task for index in range(len(table))]
    assert made == [
        Task.IMAGE_TO_TEXT,
        Task.VIDEO_TO_TEXT,
        Task.IMAGE_TO_IMAGE,
        Task.SPEECH_TO_TEXT,
    ]
    both = {task: {"rows": 1, **mix} for task, mix in json.loads(switched).items()}
    forms = MixtureConfig.from_dict({"tasks": both}).tasks[Task.TEXT_TO_TEXT].sources
    assert [(one.weight, one.thinking) for one in forms] == [(3, None), (1, False)]
    config = MixtureConfig.from_dict(json.loads(mixture))
    assert config.tasks[Task.TEXT_TO_IMAGE].sources[0].weight == 3
    assert config.tasks[Task.SPEECH_TO_TEXT].schedule.pool == 512


def test_every_adapter_and_every_kind_of_bad_sample_is_documented() -> None:
    names = re.findall(r"^\| `([a-z0-9 -]+)` \|", PAGE, re.MULTILINE)
    assert {*ADAPTERS, *(kind.value for kind in BadKind)} <= set(names)
