"""Two processes on gloo: DDP and FSDP2 train what one process trains with the same rows."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training_ranks import SETTINGS
from helpers.training_runs import plain, small_model, small_trainer
from safetensors.torch import load_file

from vllm_dynin.training_ext.trainer import TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of two processes, started as `torchrun` would."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "helpers.training_ranks", str(folder)]
    started = []
    try:
        for rank in ("0", "1"):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            log = (folder / f"{rank}.log").open("w")
            started.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
        for rank, process in enumerate(started):
            assert process.wait(timeout=240) == 0, (folder / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
    return folder


@pytest.fixture(scope="module")
def alone():
    """The same rows in one process, as one micro-batch: weights and reports."""
    trainer = small_trainer(TrainConfig(**SETTINGS), rows=4)
    reports = [report.scalars() for report in trainer.steps()]
    return {name: w.detach() for name, w in trainer.model.named_parameters()}, reports


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(ranks, alone, mode):
    weights, reports = alone
    for rank in (0, 1):
        values = json.loads((ranks / f"{mode}-{rank}.json").read_text())
        for expected, found in zip(reports, values["reports"], strict=True):
            for name in plain(expected).keys() - {"num_positions"}:
                # Sums in another order; the norm also of gradients that nearly cancel.
                assert found[name] == pytest.approx(expected[name], rel=1e-4), (rank, name)
        for name, weight in load_file(ranks / f"{mode}-{rank}.safetensors").items():
            # Where a gradient is near zero, Adam turns its last digits into a share of the
            # learning rate (1e-3); an unreduced gradient would differ by all of it everywhere.
            assert torch.allclose(weight, weights[name], atol=3e-4), name
            assert (weight - weights[name]).abs().mean() < 1e-6, name


@pytest.mark.parametrize("mode", ["ddp", "fsdp2", "fsdp2_bf16"])
def test_ranks_hold_the_same_weights(ranks, mode):
    first, second = (load_file(ranks / f"{mode}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_shards_are_halves(ranks):
    total = sum(weight.numel() for weight in small_model().parameters())
    local = [json.loads((ranks / f"fsdp2-{r}.json").read_text())["num_local"] for r in (0, 1)]
    assert sum(local) == total
    assert abs(local[0] - local[1]) < 0.02 * total


def test_a_sharded_run_resumes_bit_for_bit(ranks):
    for rank in (0, 1):
        whole = load_file(ranks / f"fsdp2-{rank}.safetensors")
        resumed = load_file(ranks / f"fsdp2-resumed-{rank}.safetensors")
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_a_run_goes_on_with_another_number_of_processes(ranks):
    """Two processes with two micro-batches each stop after two steps; one does the third."""
    trainer = small_trainer(TrainConfig(**SETTINGS, ema_decay=0.9), rows=4, seed=9)
    trainer.resume(ranks / "fsdp2" / "step-00000002")
    (last,) = (report.scalars() for report in trainer.steps())
    expected = json.loads((ranks / "fsdp2-0.json").read_text())["reports"][2]
    for name in plain(expected).keys() - {"num_positions"}:
        assert last[name] == pytest.approx(expected[name], rel=1e-4), name


def test_shards_in_bfloat16_keep_float32_weights(ranks, alone):
    """Close to float32 training, not equal to it, and with digits bfloat16 has no room for."""
    weights, reports = alone
    found = load_file(ranks / "fsdp2_bf16-0.safetensors")
    values = json.loads((ranks / "fsdp2_bf16-0.json").read_text())
    for expected, report in zip(reports, values["reports"], strict=True):
        assert report["loss"] == pytest.approx(expected["loss"], rel=0.02)
        assert report["loss"] != expected["loss"]
    for name, weight in found.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float()), name
        # Adam moves by up to the learning rate (1e-3) a step, also where rounding decides whither.
        assert (weight - weights[name]).abs().mean() < 3e-4, name
