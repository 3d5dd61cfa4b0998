"""What keeps tensor-parallel ranks alike: media are encoded once, and canvases can be compared.

Every rank takes every decision itself, from equal logits and equal draws. A codec gives no such
promise (a latent at the threshold, another convolution algorithm), so one rank runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_FAILED = -1
_ADVICE = "they compute different logits: use GPUs of one model, and please report this"


def on_first_rank(
    make: Callable[[], list[Tensor]], group: dist.ProcessGroup, device: torch.device
) -> list[Tensor]:
    """Run something on the first rank of a group and give its result to all.

    Args:
        make: gives integers of any shapes [n, …]; the same number of tensors, of the same number
            of dimensions, whenever it is called.
        group: all its ranks call this together.
        device: where the result is to be; the group's backend must reach it.

    Returns:
        int64 tensors with the values of the first rank, as columns [n, 1].

    Raises:
        RuntimeError: it failed on the first rank, which raises its own error instead.
    """
    if dist.get_world_size(group) == 1:
        return [part.reshape(-1, 1).to(device, torch.int64) for part in make()]
    first = dist.get_process_group_ranks(group)[0]
    parts: list[Tensor] = []
    error: Exception | None = None
    if dist.get_rank(group) == 0:
        try:
            parts = [part.reshape(-1).to(device, torch.int64) for part in make()]
        except Exception as raised:  # the other ranks wait: they are told before it goes on
            error = raised
    count = torch.tensor([_FAILED if error else len(parts)], device=device)
    dist.broadcast(count, first, group)
    if error is not None:
        raise error
    if int(count) == _FAILED:
        raise RuntimeError("rank 0 could not encode a medium; its log says why")
    sizes = torch.zeros(int(count), dtype=torch.int64, device=device)
    if parts:
        sizes = torch.tensor([len(part) for part in parts], device=device)
    dist.broadcast(sizes, first, group)
    flat = torch.empty(int(sizes.sum()), dtype=torch.int64, device=device)
    if parts:
        flat = torch.cat(parts)
    dist.broadcast(flat, first, group)
    return [part.reshape(-1, 1) for part in flat.split(sizes.tolist())]


def check_agreement(
    canvases: Sequence[Tensor], names: Sequence[str], group: dist.ProcessGroup
) -> None:
    """Compare canvases over the ranks of a group, by a checksum of each.

    Args:
        canvases: int64 ids [N] of each denoising request.
        names: of the requests, for the message.
        group: a group whose backend reaches CPU tensors; all its ranks call this together.

    Raises:
        RuntimeError: they differ.
    """
    # The number first: ranks that do not even run the same requests differ in it.
    counts = _gathered(torch.tensor([len(canvases)]), group)
    if counts.unique().numel() > 1:
        raise RuntimeError(f"the ranks denoise {counts.flatten().tolist()} requests; {_ADVICE}")
    sums = _gathered(torch.tensor([_checksum(ids) for ids in canvases], dtype=torch.int64), group)
    for rank, is_other in enumerate(sums != sums[0]):
        if is_other.any():
            differing = ", ".join(names[index] for index in is_other.nonzero()[:, 0].tolist())
            raise RuntimeError(
                f"rank {rank} has another canvas than rank 0 for {differing}; {_ADVICE}"
            )


def _gathered(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[ranks, n]: what each rank has."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group)
    return torch.stack(parts)


def _checksum(ids: Tensor) -> int:
    """A sum that also changes where two ids change places."""
    places = torch.arange(1, len(ids) + 1, device=ids.device)
    return int((ids * places * 0x9E3779B1).sum())
