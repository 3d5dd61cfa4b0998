"""What ranks have in common, in two processes."""

import os
import socket
import subprocess
import sys

SCRIPT = """
import sys

import torch
import torch.distributed as dist

from vllm_dynin.model_executor.ranks import check_agreement, on_first_rank

CPU = torch.device("cpu")
dist.init_process_group("gloo")
rank, group = dist.get_rank(), dist.group.WORLD


def make():
    assert rank == 0, "the other rank encodes too"
    return [torch.tensor([[3, 4], [5, 6]]), torch.tensor([], dtype=torch.int64), torch.tensor([9])]


found = on_first_rank(make, group, CPU)
assert [part.tolist() for part in found] == [[[3], [4], [5], [6]], [], [[9]]]
assert on_first_rank(lambda: [], group, CPU) == []


def fail():
    raise ValueError("no such medium")


try:
    on_first_rank(fail, group, CPU)
except (ValueError, RuntimeError) as error:
    told = ["no such medium", "rank 0 could not encode a medium; its log says why"]
    assert str(error) == told[rank]
else:
    raise AssertionError("nobody was told")
assert len(on_first_rank(make, group, CPU)) == 3  # and the ranks are still in step


def refused(canvases):
    try:
        check_agreement(canvases, ["a", "b"], group)
    except RuntimeError as error:
        return str(error)
    return ""


same = torch.arange(138_000, 138_752)
assert refused([same, same[:5]]) == refused([]) == ""
other = same.clone()
other[7], other[8] = same[8], same[7]
assert "rank 1 has another canvas than rank 0 for b;" in refused([same, other if rank else same])
assert "denoise [2, 1] requests" in refused([same] * (2 - rank))
dist.destroy_process_group()
"""


def test_one_rank_encodes_and_differing_canvases_are_found():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | shared | {"RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in started:
            process.kill()
