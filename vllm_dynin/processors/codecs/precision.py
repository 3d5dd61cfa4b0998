"""Float32 that is float32: for encoders that end in hard thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep float32 at full precision inside, then put the caller's settings back.

    TF32 (on by default for cuDNN's convolutions) and the reduced modes of oneDNN move latents
    across the quantiser's threshold.
    NOTE: the settings are the process's; another thread's float32 work is slower meanwhile, not
    wrong.
    """
    backends: Any = torch.backends  # the stubs lack the precision knobs
    knobs = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    previous = [knob.fp32_precision for knob in knobs]
    try:
        for knob in knobs:
            knob.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for knob, value in zip(knobs, previous, strict=True):
            knob.fp32_precision = value
