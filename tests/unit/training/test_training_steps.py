"""One step is one step, however it is cut up, and a resumed run is the run that was not cut off."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.training_killed import SETTINGS
from helpers.training_runs import DIRECTIONS, plain, small_model, small_trainer

from vllm_dynin.canvas import Task
from vllm_dynin.training_ext.trainer import TrainConfig
from vllm_dynin.training_ext.trainer.checkpoints import whole_checkpoints

ROOT = Path(__file__).parents[3]


def config(**changes):
    values = {"num_steps": 4, "seed": 3, "learning_rate": 1e-3, "num_warmup_steps": 1}
    return TrainConfig(**values | changes)


def run(trainer, num_steps=None):
    reports = []
    for report in trainer.steps():
        reports.append(report)
        if report.step == num_steps:
            break
    return reports


def assert_equal_runs(one, other):
    for (name, weight), twin in zip(
        one.model.named_parameters(), other.model.parameters(), strict=True
    ):
        assert torch.equal(weight, twin), name
        for key, value in one.optimizer.state[weight].items():
            assert torch.equal(value, other.optimizer.state[twin][key]), (name, key)
    if one.average is not None:
        for name, weight in one.average.weights.items():
            assert torch.equal(weight, other.average.weights[name]), name


def test_every_direction_is_trained():
    trainer = small_trainer(config(num_steps=60, learning_rate=3e-3), num_records=2)
    reports = run(trainer)
    first, last = reports[:10], reports[-10:]
    for task in DIRECTIONS:
        before = sum(report.tasks[task].loss for report in first)
        after = sum(report.tasks[task].loss for report in last)
        assert after < 0.8 * before, task
    report = reports[0]
    assert set(report.tasks) == set(DIRECTIONS)
    assert report.num_supervised == sum(part.num_supervised for part in report.tasks.values())
    assert report.loss == pytest.approx(sum(part.loss for part in report.tasks.values()))


def test_eight_micro_batches_equal_one():
    """14 rows of seven directions in 1, 2 and 8 passes: the same noise, loss and gradient."""
    reports, weights = {}, {}
    for parts in (1, 2, 8):
        trainer = small_trainer(config(num_micro_batches=parts, num_steps=3), rows=2)
        reports[parts] = run(trainer)
        weights[parts] = [w.detach().clone() for w in trainer.model.parameters()]
    for parts in (2, 8):
        for whole, cut in zip(reports[1], reports[parts], strict=True):
            assert cut.num_supervised == whole.num_supervised
            assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
            assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
            for task, part in whole.tasks.items():
                assert cut.tasks[task].loss == pytest.approx(part.loss, rel=1e-5)
        # Sums in another order differ by 1e-7; Adam divides a step by its own size, so that
        # where a gradient is near zero the difference is a share of the learning rate.
        for one, other in zip(weights[1], weights[parts], strict=True):
            assert torch.allclose(one, other, atol=3e-4)


def test_a_run_resumes_bit_for_bit(tmp_path):
    """Model, moments, average, schedule, data position and what was logged."""
    settings = config(num_steps=5, ema_decay=0.9, num_micro_batches=2)
    whole = small_trainer(settings)
    expected = run(whole)
    cut = small_trainer(settings)
    run(cut, 3)
    path = cut.save(tmp_path)
    again = small_trainer(settings, seed=9)  # other weights, to be overwritten
    again.resume(path)
    rest = run(again)
    assert [plain(report.scalars()) for report in rest] == [
        plain(report.scalars()) for report in expected[3:]
    ]
    assert_equal_runs(whole, again)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    trainer = small_trainer(config())
    for _ in trainer.steps():
        trainer.save(tmp_path, keep=2)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000003", "step-00000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_is_not_whole(tmp_path):
    trainer = small_trainer(config())
    run(trainer, 1)
    first = trainer.save(tmp_path)
    run(trainer, 2)
    second = trainer.save(tmp_path)
    assert whole_checkpoints(tmp_path) == [first, second]
    weights = second / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert whole_checkpoints(tmp_path) == [first]


def test_another_configuration_is_refused(tmp_path):
    trainer = small_trainer(config())
    run(trainer, 1)
    path = trainer.save(tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 → 0\.002"):
        small_trainer(config(learning_rate=2e-3)).resume(path)


def test_low_precision_weights_are_refused():
    trainer = small_trainer(config())
    model = small_model().bfloat16()
    with pytest.raises(ValueError, match=r"wte.weight is torch.bfloat16; .*dtype=torch.float32"):
        type(trainer)(model, trainer.feed, {}, trainer.config)


def test_a_run_killed_while_saving_resumes_from_its_last_whole_checkpoint(tmp_path):
    """SIGKILL with every file of the second checkpoint written and none of it in place."""
    command = [sys.executable, "-m", "helpers.training_killed", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "ready").exists():
            assert process.poll() is None, "the run ended before its second save"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".step-00000004.tmp",
        "step-00000002",
    ]
    (path,) = whole_checkpoints(folder)
    settings = TrainConfig(**SETTINGS)
    again, whole = small_trainer(settings, seed=9), small_trainer(settings)
    again.resume(path)
    assert again.step == 2
    run(again)
    run(whole)
    assert_equal_runs(whole, again)
    again.save(folder, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_micro_batches": 2},
        {"is_activation_checkpointed": True},
        {"is_packed": True},
        {"num_steps": 9},
    ],
)
def test_what_changes_no_mathematics_may_change_on_the_way(tmp_path, changes):
    """A run that ran out of memory is cut finer, and one that is not done is prolonged."""
    identity = {"global_batch": 14}
    path = saved(tmp_path, identity)
    again = small_trainer(config(**changes), seed=7, identity=identity)
    again.resume(path)
    assert again.step == 2
    report = next(again.steps())
    if "num_steps" not in changes:
        whole = small_trainer(config())
        expected = run(whole)[2]
        assert report.loss == pytest.approx(expected.loss, rel=1e-5)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def saved(folder, identity):
    trainer = small_trainer(config(), identity=identity)
    for _ in zip(trainer.steps(), range(2), strict=False):
        path = trainer.save(folder)
    return path


@pytest.mark.parametrize(
    ("changes", "identity", "message"),
    [
        ({"learning_rate": 2e-3}, {}, "learning_rate: 0.001 → 0.002"),
        ({"precision": "bf16"}, {}, "precision: 'fp32' → 'bf16'"),
        ({"num_steps": 3}, {}, "num_steps: 4 → 3"),
        ({"weigh_by_rows": True}, {}, "weigh_by_rows: False → True"),
        ({}, {"global_batch": 28}, "global_batch: 14 → 28"),
        ({}, {"tasks.t2i.objective.coefficient": 0.1}, "t2i.objective.coefficient: 1.0 → 0.1"),
        ({}, {"data.t2t": {"chat": {"rows": 8, "weight": 1.0}}}, "data.t2t: .*7.* → .*8"),
    ],
)
def test_what_changes_the_mathematics_is_refused(tmp_path, changes, identity, message):
    """A doubled batch and another coefficient were taken in silence."""
    same = {
        "global_batch": 14,
        "tasks.t2i.objective.coefficient": 1.0,
        "data.t2t": {"chat": {"rows": 7, "weight": 1.0}},
    }
    path = saved(tmp_path, same)
    with pytest.raises(ValueError, match=f"trains something else .*{message}"):
        small_trainer(config(**changes), identity=same | identity).resume(path)


def test_a_direction_weighs_as_many_rows_as_it_has():
    """The loss of a step is the mean over its rows; by default the sum of the directions' means."""
    tasks = (Task.TEXT_TO_TEXT, Task.TEXT_TO_IMAGE)
    found = {}
    for weighs in (False, True):
        trainer = small_trainer(config(weigh_by_rows=weighs, num_steps=1), tasks=tasks)
        trainer.feed.mixture.rows = {tasks[0]: 6, tasks[1]: 2}
        found[weighs] = run(trainer)[0]
    losses = [found[True].tasks[task].loss for task in tasks]
    assert losses == [found[False].tasks[task].loss for task in tasks]
    assert found[False].loss == pytest.approx(sum(losses), rel=1e-6)
    assert found[True].loss == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-6)
    assert found[True].grad_norm < found[False].grad_norm


def test_the_log_tells_answers_and_their_end_apart():
    """Of a filled row nearly all labels are EOS; a mean over them says nothing of the answer."""
    trainer = small_trainer(config(num_steps=1), tasks=(Task.TEXT_TO_TEXT,), rows=8)
    values = run(trainer)[0].scalars()
    part = {name: value for name, value in values.items() if name.startswith("num_")}
    assert 0 < part["num_ends/t2t"] < part["num_supervised/t2t"]
    assert values["nll_end/t2t"] > 0 and any(name.startswith("nll/t2t/p") for name in values)


def test_bfloat16_computes_in_bfloat16_and_trains_float32_weights():
    plain = run(small_trainer(config(num_steps=3)))
    trainer = small_trainer(config(num_steps=3, precision="bf16"))
    seen = set()
    block = trainer.model.model.transformer.blocks[0]
    block.ff_proj.register_forward_hook(lambda module, given, result: seen.add(result.dtype))
    for expected, found in zip(plain, run(trainer), strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=0.02)
        assert found.loss != expected.loss
    assert seen == {torch.bfloat16}
    for name, weight in trainer.model.named_parameters():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float()), name


def test_activation_checkpointing_recomputes_each_block_and_changes_no_bit():
    """Each direction is a pass: seven calls a block, fourteen with recomputation."""
    runs = {}
    for is_on in (False, True):
        trainer = small_trainer(config(num_steps=2, is_activation_checkpointed=is_on))
        calls = []
        block = trainer.model.model.transformer.blocks[1]
        block.q_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run(trainer)
        runs[is_on] = trainer
        assert len(calls) == 2 * len(DIRECTIONS) * (2 if is_on else 1)
    assert_equal_runs(runs[False], runs[True])


def test_the_moving_average_is_the_average():
    trainer = small_trainer(config(num_steps=3, ema_decay=0.75))
    name, weight = next(iter(trainer.model.named_parameters()))
    expected = weight.detach().clone()
    for _ in trainer.steps():
        expected = 0.75 * expected + 0.25 * weight.detach()
    assert torch.allclose(trainer.average.weights[name], expected, atol=1e-6)
    assert not torch.allclose(weight, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "num_micro_batches=1, but accelerate took"),
        ("ACCELERATE_USE_FSDP", "true", "sharding is set by sharding=fsdp2"),
        ("WORLD_SIZE", "2", "2 processes were started, but accelerate sees 1 and each would"),
    ],
)
def test_a_launcher_that_says_otherwise_is_refused(monkeypatch, variable, value, message):
    """The released stages lost their accumulation this way: the launcher's file won, unsaid."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        small_trainer(config())


def test_shards_need_processes():
    with pytest.raises(ValueError, match=r"sharding=fsdp2 needs processes: start with"):
        small_trainer(config(sharding="fsdp2"))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change():
    trainer = small_trainer(config())
    with torch.no_grad():
        trainer.model.model.transformer.ln_f.weight[0] = float("inf")
    before = trainer.model.head_weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"step 1 has loss .* not finite"):
        run(trainer)
    assert torch.equal(trainer.model.head_weight, before)


def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_weights_change():
    trainer = small_trainer(config())
    trainer.model.head_weight.register_hook(lambda gradient: gradient * float("nan"))
    before = trainer.model.head_weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"step 1 has loss \d.* gradient norm nan"):
        run(trainer)
    assert torch.equal(trainer.model.head_weight, before)


def test_too_few_rows_for_the_micro_batches():
    trainer = small_trainer(config(num_micro_batches=15), rows=2)
    with pytest.raises(ValueError, match=r"14 rows for 15 micro-batches; draw more rows"):
        run(trainer)
