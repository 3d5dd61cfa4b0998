"""Images while they fill in: which steps are shown, and what an unfinished image looks like.

The worker keeps the step at which each code was decided (`trajectory`), so a picture of step s is
the same whenever it is taken: while the request runs, or from its trajectory when it has ended.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.config import MMadaConfig
from vllm_dynin.defaults import defaults_of
from vllm_dynin.entrypoints.http.service import Answer, MediaService, Sent
from vllm_dynin.planning import image_size
from vllm_dynin.processors.templates import infer_task
from vllm_dynin.requests import Checkpoint, EditImage, MixedAnswer
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.trajectory import Trajectory

_POLL_SECONDS = 0.05
"""Between two looks at a running request; each one is a short call between two engine steps."""

ImageEvents = AsyncGenerator[tuple[int, Image.Image, Answer | None]]
"""Index, image, and with the last one the answer."""


def due_steps(num_steps: int, num_partials: int) -> list[int]:
    """The denoising steps after which an image is shown, evenly spaced, the last one left out."""
    steps = {math.ceil(num_steps * (i + 1) / (num_partials + 1)) for i in range(num_partials)}
    return sorted(step for step in steps if step < num_steps)


async def image_events(service: MediaService, sent: Sent, num_partials: int) -> ImageEvents:
    """A request's image as it fills in, then as it is.

    Args:
        service: answers it.
        sent: with `trajectory`.
        num_partials: unfinished images wanted; as many come, fewer where there are fewer steps.
    """
    options = DenoiseParams.parse(sent.params.extra_args)
    task = options.task or infer_task(sent.prompt["prompt_token_ids"], _config(service).vocabulary)
    steps = options.steps or defaults_of(task, _config(service)).steps or 1
    due = due_steps(steps, num_partials)
    answering = asyncio.ensure_future(service.answer(sent))
    index = 0
    try:
        while index < len(due) and not answering.done():
            await asyncio.wait({answering}, timeout=_POLL_SECONDS)
            seen = None if answering.done() else await _peek(service, sent, answering)
            while seen is not None and index < len(due) and seen.num_steps >= due[index]:
                yield index, await _picture(service, sent, seen, due[index]), None
                index += 1
        answer = await answering
        trajectory = answer.result.trajectory
        while trajectory is not None and index < len(due) and due[index] < trajectory.num_steps:
            yield index, await _picture(service, sent, trajectory, due[index]), None
            index += 1
        assert answer.result.image is not None
        yield index, answer.result.image, answer
    finally:
        answering.cancel()


async def _peek(
    service: MediaService, sent: Sent, answering: asyncio.Future[Answer]
) -> Trajectory | None:
    """What there is to see; None as soon as the answer is there, or will never be."""
    looking = asyncio.ensure_future(service.peek(sent))
    try:
        either: set[asyncio.Future[Any]] = {looking, answering}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return looking.result() if looking.done() else None
    finally:
        looking.cancel()


async def _picture(service: MediaService, sent: Sent, seen: Trajectory, step: int) -> Image.Image:
    return await service.in_thread(picture, seen, step, sent, service.checkpoint)


def picture(seen: Trajectory, step: int, sent: Sent, checkpoint: Checkpoint) -> Image.Image:
    """An image after a step, its undecided patches grey.

    Args:
        seen: of a request for an image.
        step: from 0.
        sent: the request; its options and direction give the size.
        checkpoint: decodes it.
    """
    config = checkpoint.media_config
    options = DenoiseParams.parse(sent.params.extra_args)
    is_edit = isinstance(sent.request, EditImage | MixedAnswer)
    task = Task.IMAGE_TO_IMAGE if is_edit else Task.TEXT_TO_IMAGE
    height, width = image_size(options, task, config)
    rows, columns = height // config.image_patch, width // config.image_patch
    is_decided = np.array(seen.is_decided(step)[: rows * columns]).reshape(rows, columns)
    ids = np.array(seen.token_ids[: rows * columns]).reshape(rows, columns)
    codes = _filled(ids - config.vocabulary.image.start, is_decided)
    image = checkpoint.codecs.decode_image(codes.reshape(-1).tolist(), height, width).result()
    return seen.covered(image, step, config.image_patch)


def _filled(codes_RC: np.ndarray, is_decided_RC: np.ndarray) -> np.ndarray:
    """Codes with every undecided one replaced by the nearest decided one, which the decoder needs.

    Its picture is covered, but the decoder's filters reach into the patches around it.
    """
    if not is_decided_RC.any():
        return np.zeros_like(codes_RC)
    rows, columns = np.nonzero(is_decided_RC)
    known, filled_RC = codes_RC[rows, columns], codes_RC.copy()
    across = (np.arange(codes_RC.shape[1])[:, None] - columns) ** 2
    for row, is_decided_C in enumerate(is_decided_RC):  # row by row, to bound the memory
        nearest_C = (across + (row - rows) ** 2).argmin(axis=1)
        filled_RC[row] = np.where(is_decided_C, codes_RC[row], known[nearest_C])
    return filled_RC


def _config(service: MediaService) -> MMadaConfig:
    return service.checkpoint.media_config
