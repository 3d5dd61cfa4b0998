"""Environment variables of our own. Not `VLLM_…`: vLLM warns of those it does not know."""

from __future__ import annotations

import os

UI = "DYNIN_UI"
"""1: serve the page at `/`. `vllm-dynin serve --ui` sets it."""

MAX_BODY_MB = "DYNIN_MAX_BODY_MB"
"""Longest request body, in MiB; default 128."""

MAX_TOTAL_BODY_MB = "DYNIN_MAX_TOTAL_BODY_MB"
"""All bodies of unanswered requests together, in MiB; default 1,024."""

BODY_SECONDS = "DYNIN_BODY_SECONDS"
"""A request body may take this long, however slowly it comes; default 20."""

IMAGE_STORE = "VLLM_DYNIN_IMAGE_STORE"
"""Folder for images that answers link to (`response_format: url`); without it there are none."""

IMAGE_STORE_SECONDS = "VLLM_DYNIN_IMAGE_STORE_SECONDS"
"""How long an image is kept there; default 3,600."""

CHECK_RANKS = "DYNIN_CHECK_RANKS"
"""1: tensor-parallel ranks compare their canvases after each step. Slow; to find faults."""


def checks_ranks() -> bool:
    """Whether tensor-parallel ranks compare their canvases after each step.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    return _flag(CHECK_RANKS, "to have ranks compare their canvases")


KERNELS = "DYNIN_KERNELS"
"""`torch`, `triton` or `cuda`: which form of the sampler's kernels runs; default: by the device."""


def kernels() -> str | None:
    """The form of the kernels that is asked for, None for the one that the device calls for.

    Raises:
        ValueError: the variable is none of them.
    """
    value = os.environ.get(KERNELS)
    if value not in (None, "", "torch", "triton", "cuda"):
        raise ValueError(f"{KERNELS}={value!r}; set it to torch, triton or cuda, or leave it unset")
    return value or None


def interprets_triton() -> bool:
    """Whether Triton's own variable asks for its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


ORDER = "DYNIN_ORDER"
"""`fcfs` (default): first come, first served. `short`: answers of few steps may pass long ones."""


def prefers_short() -> bool:
    """Whether short answers may pass long ones.

    Raises:
        ValueError: the variable is neither `fcfs` nor `short`.
    """
    value = os.environ.get(ORDER, "fcfs")
    if value not in ("fcfs", "short"):
        raise ValueError(f"{ORDER}={value!r}; set it to fcfs (first come, first served) or short")
    return value == "short"


def wants_page() -> bool:
    """Whether the page is served.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    return _flag(UI, "for the page at /")


def _flag(name: str, purpose: str) -> bool:
    value = os.environ.get(name, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{name}={value!r}; set it to 1 {purpose}, or to 0")
    return value == "1"


def positive(name: str, default: int) -> int:
    """A variable that is a positive whole number.

    Raises:
        ValueError: it is none.
    """
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{name}={value!r} must be a positive whole number")
    return int(value)
