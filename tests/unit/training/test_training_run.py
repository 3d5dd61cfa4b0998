"""A run in a folder: its log, its validation, going on after a cut, and what it leaves to serve."""

import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import islice

import pytest
import torch
from helpers.tiny_tokenizer import make_tokenizer
from helpers.training_runs import plain, record, small_context, small_model, small_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.training_ext.data import TooManyBad
from vllm_dynin.training_ext.trainer import TrainConfig
from vllm_dynin.training_ext.trainer.export import Companions
from vllm_dynin.training_ext.trainer.feed import DataFailed
from vllm_dynin.training_ext.trainer.run import RunOptions, Stopped, run
from vllm_dynin.training_ext.trainer.validation import GRID, Validator

TASKS = (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE, Task.TEXT_TO_SPEECH)


def config(**changes):
    values = {"num_steps": 6, "seed": 3, "learning_rate": 1e-3, "num_warmup_steps": 1}
    return TrainConfig(**values | changes)


def lines(folder):
    """The log without wall clocks."""
    text = (folder / "log.jsonl").read_text().splitlines()
    return [plain(json.loads(line)) for line in text]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint with a tokenizer and a folder where a codec would be."""
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    model = small_model()
    checkpoint.save_checkpoint(folder, model.config, model.state_dict(), make_tokenizer())
    (folder / "image_codec").mkdir()
    (folder / "image_codec" / "config.json").write_text("{}")
    return folder


def validator(trainer, tasks=TASKS, **options):
    held_out = {task: [record(task, number % 2) for number in range(12)] for task in tasks}
    return Validator(held_out, small_context(trainer.model.config), **options)


def test_a_run_leaves_logs_checkpoints_and_a_model_to_serve(tmp_path, start):
    trainer = small_trainer(config(ema_decay=0.5), tasks=TASKS)
    trainer.load_weights(start)
    held_out = validator(trainer, num_generated=1, steps=2)
    options = RunOptions(save_every=2, log_every=3, validate_every=4)
    final = run(
        trainer,
        tmp_path,
        options,
        companions=Companions(start),
        validator=held_out,
        settings="num_steps = 6",
    )
    assert (tmp_path / "settings.txt").read_text() == "num_steps = 6\n"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [3, 4, 6, 6]
    assert {f"loss/{task}" for task in TASKS} <= logged[0].keys()
    assert {f"validation/nll/{task}/p{p:g}" for task in TASKS for p in GRID} <= logged[1].keys()
    assert len(logged[1]["validation/samples/t2i"]) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/t2i")] == [3, 6]
    assert events.Scalars("loss/t2i")[0].value == pytest.approx(logged[0]["loss/t2i"])

    served = load_reference(final)
    for name, weight in served.named_parameters():
        assert torch.equal(weight, trainer.average.weights[name].bfloat16()), name
    assert len(AutoTokenizer.from_pretrained(final)) == served.config.text_vocab_size
    assert (final / "image_codec" / "config.json").read_text() == "{}"
    kept = tmp_path / "checkpoints" / "step-00000006" / "model"
    assert torch.equal(load_reference(kept).head_weight, trainer.model.head_weight)


def test_a_run_that_was_cut_off_has_the_log_and_weights_of_one_that_was_not(tmp_path, start):
    """Cut between two checkpoints: steps 3 and on are trained and logged again."""
    options = RunOptions(save_every=2, log_every=1)
    whole = small_trainer(config(), tasks=TASKS)
    run(whole, tmp_path / "whole", options, validator=validator(whole, steps=2))

    class CutError(Exception):
        pass

    def cut(report):
        if report.step == 3:
            raise CutError

    with pytest.raises(CutError):
        run(small_trainer(config(), tasks=TASKS), tmp_path / "cut", options, on_step=cut)
    # An error leaves a checkpoint, SIGKILL none.
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000003")
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    again = small_trainer(config(), tasks=TASKS, seed=5)
    with pytest.raises(ValueError, match="holds a run at step 2; resume it, or choose another"):
        run(again, tmp_path / "cut", options)
    run(again, tmp_path / "cut", options, validator=validator(again, steps=2), is_resumed=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for weight, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_sigterm_ends_a_run_behind_its_step_with_a_checkpoint(tmp_path):
    """What a scheduler sends before it takes the machine away."""
    before = signal.getsignal(signal.SIGTERM)

    def end(report):
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    options = RunOptions(save_every=100, log_every=1)
    with pytest.raises(Stopped, match="saved at step 3 of 6, to be resumed"):
        run(small_trainer(config(), tasks=TASKS), tmp_path, options, on_step=end)
    assert signal.getsignal(signal.SIGTERM) is before
    again = small_trainer(config(), tasks=TASKS, seed=5)
    run(again, tmp_path, options, is_resumed=True)
    whole = small_trainer(config(), tasks=TASKS)
    list(whole.steps())
    for weight, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_the_log_has_speed_time_for_data_and_memory(tmp_path):
    run(small_trainer(config(num_steps=1), tasks=TASKS), tmp_path, RunOptions(log_every=1))
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 0 < line["data_seconds"] < line["seconds"]
    rate = line["num_positions"] / line["seconds"]
    assert line["positions_per_second"] == pytest.approx(rate)
    assert 0.1 < line["peak_gib"] < 100


@pytest.mark.parametrize("why", ["data", "loss"])
def test_a_run_that_ends_early_is_saved_and_gone_on_from(tmp_path, start, why):
    """The data give no more rows in step 4, or its loss is not finite: step 3 is there."""
    options = RunOptions(save_every=100, log_every=1)
    whole = small_trainer(config(), tasks=TASKS)
    run(whole, tmp_path / "whole", options)
    ended = small_trainer(config(), tasks=TASKS)
    draw, forward = ended.feed.mixture.next_step, ended.forward

    def fail(*given):
        if ended.step < 3:
            return draw() if why == "data" else forward(*given)
        if why == "loss":
            losses = forward(*given)
            task = next(iter(losses.per_task))
            return replace(losses, per_task=losses.per_task | {task: torch.tensor(float("nan"))})
        draw()
        raise TooManyBad("300 of 400 samples are bad")

    if why == "data":
        ended.feed.mixture.next_step = fail
    else:
        ended.forward = fail
    with pytest.raises((DataFailed, FloatingPointError), match=r"300 of 400 samples|step 4 has"):
        run(ended, tmp_path / "ended", options)
    assert [p.name for p in (tmp_path / "ended" / "checkpoints").iterdir()] == ["step-00000003"]
    again = small_trainer(config(), tasks=TASKS, seed=5)
    run(again, tmp_path / "ended", options, is_resumed=True)
    assert lines(tmp_path / "ended") == lines(tmp_path / "whole")
    for weight, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_what_is_learnt_by_heart_is_likely_and_generated(tmp_path):
    trainer = small_trainer(
        config(num_steps=160, learning_rate=3e-3, min_learning_rate_ratio=0.1),
        tasks=TASKS,
        num_records=2,
        rows=8,
    )
    held_out = validator(trainer)  # the records that are trained on
    before = held_out.likelihood(trainer)
    assert before == held_out.likelihood(trainer)  # fixed noise
    list(trainer.steps())
    after = held_out.likelihood(trainer)
    answers = held_out.generate(trainer)
    assert len(answers) == 6
    for task in TASKS:
        name = f"validation/nll/{task}"
        assert before[name] > 1.5 and after[name] < 0.3, task
        assert after[name] == pytest.approx(sum(after[f"{name}/p{p:g}"] for p in GRID) / len(GRID))
    assert after["validation/nll_end/t2t"] < before["validation/nll_end/t2t"]
    assert "validation/nll_end/t2i" not in after  # images have no EOS
    text, _, image, _, speech, _ = answers
    assert text.is_right and text.given == "blue 0"
    assert image.expected == record(Task.TEXT_TO_IMAGE, 0).target_image
    assert speech.is_right and speech.given == record(Task.TEXT_TO_SPEECH, 0).units


def test_weights_may_be_filled_into_a_model_that_has_none(start):
    """As with shards: no process builds the whole model first."""
    whole = small_trainer(config(num_steps=1), tasks=TASKS)
    expected = load_reference(start)
    with torch.device("meta"):
        empty = type(whole.model)(whole.model.config)
    filled = type(whole)(empty, whole.feed, whole.objectives, whole.config)
    filled.load_weights(start)
    for weight, other in zip(empty.parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_another_models_weights_are_refused(tmp_path, start):
    trainer = small_trainer(config(), tasks=TASKS)
    other = small_model(layers=1)
    checkpoint.save_checkpoint(tmp_path / "other", other.config, other.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the model of this run: .*blocks\.1"):
        trainer.load_weights(tmp_path / "other")


def test_validation_does_not_touch_training():
    plain, watched = (small_trainer(config(num_steps=3), tasks=TASKS) for _ in range(2))
    held_out = validator(watched, steps=1)
    list(plain.steps())
    for _ in islice(watched.steps(), 3):
        held_out.likelihood(watched)
        held_out.generate(watched)
    for weight, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(weight, other)
