"""Classifier-free guidance, once."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

GuidanceForm = Literal["delta", "weighted"]
"""The two ways the original writes one formula; they round differently below float32."""


def guide(
    conditional: Tensor, unconditional: Tensor, scale: float, form: GuidanceForm = "delta"
) -> Tensor:
    """Guided logits `(1 + scale) * conditional - scale * unconditional`; scale 0 is off.

    Args:
        conditional: logits, any floating dtype; not modified.
        unconditional: same shape and dtype; not modified.
        scale: guidance scale s.
        form: `delta` is `u + (s + 1)(c - u)` (text and speech), `weighted` is
            `(1 + s) c - s u` (images). Equal in exact arithmetic.

    Returns:
        Logits of the same shape and dtype.

    Source: `mmu_generate` (delta) and `t2i_generate` (weighted) of Dynin-Omni.
    """
    if form == "delta":
        return unconditional + (scale + 1.0) * (conditional - unconditional)
    return (1.0 + scale) * conditional - scale * unconditional
