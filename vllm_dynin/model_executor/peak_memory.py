"""What takes most memory outside the forward, done once while vLLM measures.

vLLM gives the KV cache what its profile leaves over, and the profile runs a forward, its own
sampler, and one kind of medium through its encoder. A server also samples from tiles of logits,
keeps canvases, and decodes images and speech; what is not measured here would find no memory later.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch

from vllm_dynin import sizing
from vllm_dynin.model_executor.step_logits import StepLogits, WantedRows
from vllm_dynin.processors.codecs.speech import MAX_UNITS
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.confidence import propose
from vllm_dynin.sampling.noise import StepDraws
from vllm_dynin.sampling.tiles import propose_in_tiles

if TYPE_CHECKING:
    from vllm_dynin.processors.media import CodecFolders, MediaCodecs

logger = logging.getLogger(__name__)


@torch.inference_mode()
def use_most_memory(model: Any, *, max_rows: int, max_slots: int, with_codecs: bool) -> None:
    """Hold as many canvases as can run, sample the largest tile, and run each half of each codec.

    Args:
        model: a `MaskedDiffusionLM` with its weights, on its device.
        max_rows: rows of a step.
        max_slots: slots of the widest canvas, which bound what a codec is given.
        with_codecs: whether media are measured at all (`--skip-mm-profiling`).
    """
    started = time.monotonic()
    weight = model.transformer.wte.weight
    num_bytes = sizing.canvas_bytes(model.config, max_rows, weight.element_size())
    canvases = torch.empty(num_bytes, dtype=torch.uint8, device=weight.device)
    _sample(model, weight)
    done = []
    media: MediaCodecs | None = getattr(model, "media", None)
    if media is not None and with_codecs:
        done = run_codecs(media, model.media_folders, max_slots, weight.device)
    logger.info(
        "measured with the profile: canvases of %.1f MiB, the largest tile of logits, %s (%.1f s)",
        num_bytes / 2**20,
        ", ".join(done) or "no codecs",
        time.monotonic() - started,
    )
    del canvases


def _sample(model: Any, weight: torch.Tensor) -> None:
    """A guided step over the whole vocabulary, with as many rows as are multiplied together."""
    columns = Columns(((0, model.config.vocab_size),))
    num_slots = max(1, StepLogits.max_rows(columns) // 2)  # of two streams
    slots = torch.arange(num_slots, device=weight.device)
    hidden_TD = torch.zeros(
        num_slots, model.config.d_model, dtype=weight.dtype, device=weight.device
    )
    wanted = WantedRows(rows=slots, unconditional_rows=slots, columns=columns, guidance_scale=1.0)
    propose_in_tiles(
        slots,
        partial(StepLogits(model.head, hidden_TD, [wanted]).rows, 0),
        columns,
        propose=partial(propose, temperature=1.0, remasking="low_confidence"),
        draws=StepDraws(0, 0, 0, 0),
        logprobs=None,
        start=0,
    )


def run_codecs(
    media: MediaCodecs, folders: CodecFolders, max_slots: int, device: torch.device
) -> list[str]:
    """Encode and decode the largest square image and the longest speech that fit a canvas.

    Longer recordings are encoded in pieces, so one piece is the most; speech is decoded in pieces
    after a pass over all its units, so the first piece is.

    Returns:
        What was run, in words.
    """
    done = []
    if folders.image is not None:
        side = isqrt(max_slots) * media.image.patch
        pixels = torch.zeros(1, 3, side, side, device=device)
        codes = media.image.encode_pixels(pixels)
        media.image.decode_pixels(codes, side, side)
        done.append(f"an image of {side}×{side} encoded and decoded")
    if folders.speech is not None:
        speech = media.speech.backend
        click = torch.zeros(speech.max_chunk_seconds * speech.input_rate)
        click[::100] = 0.5
        speech.raw_units(click)
        num_units = min(max_slots, MAX_UNITS)
        next(media.speech.decode_stream([0] * num_units, seed=0))
        done.append(f"{speech.max_chunk_seconds} s of speech encoded, {num_units} units decoded")
    return done
