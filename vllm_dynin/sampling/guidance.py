"""Classifier-free guidance, once."""

from __future__ import annotations

from torch import Tensor

from vllm_dynin.canvas import GuidanceForm


def guide(conditional: Tensor, unconditional: Tensor, scale: float, form: GuidanceForm) -> Tensor:
    """Guided logits `(1 + scale) * conditional - scale * unconditional`; scale 0 is off.

    Args:
        conditional: logits, any floating dtype; not modified.
        unconditional: same shape and dtype; not modified.
        scale: guidance scale s.
        form: which of two formulas that are equal in exact arithmetic.

    Returns:
        Logits of the same shape and dtype.

    Source: `mmu_generate` (delta form) and `t2i_generate` (weighted form) of Dynin-Omni.
    """
    if form is GuidanceForm.DELTA:
        return unconditional + (scale + 1.0) * (conditional - unconditional)
    return (1.0 + scale) * conditional - scale * unconditional
