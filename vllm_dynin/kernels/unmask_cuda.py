"""`unmask` in CUDA C++ (csrc/unmask.cu), where it was built; unmask_rules.py has the rules."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vllm_dynin.kernels.csrc import nvcc
from vllm_dynin.kernels.unmask_rules import Candidates, Canvases, NextRows

LIBRARY = nvcc.SOURCE.with_name(nvcc.LIBRARY)
WIDEST = 4096
"""Slots of a window: what fits into shared memory."""
_POINTERS = (
    *("ids", "state", "table", "request", "slot", "token", "score", "confidence", "entropy"),
    *("next_request", "next_slot", "counts"),
)
_NUMBERS = ("num_slots", "num_rows", "num_next", "width", "num_requests", "ids_are_64")


class Arguments(ctypes.Structure):
    """`Arguments` of csrc/unmask.cu."""

    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS] + [
        (name, ctypes.c_int64) for name in _NUMBERS
    ]


@cache
def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: it was not built, or does not load.
    """
    if not path.exists():
        raise RuntimeError(
            f"DYNIN_KERNELS=cuda needs {path}, which is built where nvcc is: run "
            "`python packaging/kernels/compile.py --install`, or unset DYNIN_KERNELS"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"DYNIN_KERNELS=cuda: {path} does not load: {error}") from error
    library.dynin_unmask.argtypes = [ctypes.POINTER(Arguments), ctypes.c_void_p]
    library.dynin_unmask.restype = ctypes.c_int
    return library


def unmask_cuda(
    canvases: Canvases,
    table_BC: Tensor,
    candidates: Candidates,
    following: NextRows | None,
    *,
    width: int,
    library: ctypes.CDLL | None = None,
) -> None:
    """See `unmask`.

    Raises:
        RuntimeError: the library was not built, or the launch failed.
        ValueError: the window is too wide.
    """
    if width > WIDEST:
        raise ValueError(f"a window of {width} slots is too wide for DYNIN_KERNELS=cuda ({WIDEST})")
    library = library or load()
    confidence_R, score_R = candidates.confidence_R, candidates.score_R
    counts = table_BC.new_empty(5, len(table_BC), dtype=torch.int32)
    ids_SN = canvases.ids_SN
    tensors = {
        "ids": ids_SN,
        "state": canvases.state_SN,
        "table": table_BC,
        "request": candidates.request_R,
        "slot": candidates.slot_R,
        "token": candidates.token_R,
        "score": confidence_R if score_R is None else score_R,
        "confidence": confidence_R,
        "entropy": confidence_R if candidates.entropy_R is None else candidates.entropy_R,
        "counts": counts,
    }
    if following is not None:
        tensors |= {"next_request": following.request_Q, "next_slot": following.slot_Q}
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    arguments = Arguments(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        num_slots=ids_SN.shape[1],
        num_rows=len(candidates.request_R),
        num_next=0 if following is None else len(following.slot_Q),
        width=width,
        num_requests=len(table_BC),
        ids_are_64=ids_SN.dtype == torch.int64,
    )
    stream = torch.cuda.current_stream(ids_SN.device).cuda_stream if ids_SN.is_cuda else 0
    error = library.dynin_unmask(ctypes.byref(arguments), stream)
    if error:
        raise RuntimeError(f"csrc/unmask.cu: CUDA error {error} at its launch")
    if following is not None:
        following.num_rows_B.copy_(counts[0])
        following.num_masked_B.copy_(counts[1])
        following.num_decided_B.copy_(counts[2])
        following.num_revoked_B.copy_(counts[3])
        following.committed_B.copy_(counts[4])
