"""From a prompt and its options to a plan: the canvas, and how each region of it is decoded.

Above `processors` (layouts) and `sampling` (decoding), below the engine and the reference driver,
which both follow the plan. No vLLM here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from vllm_dynin.canvas import Canvas, Decoder, Parity, Region, Task
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.defaults import (
    UNITS_PER_SECOND,
    Defaults,
    default_size,
    defaults_of,
    stated_defaults,
)
from vllm_dynin.processors.codecs.styles import parse_style
from vllm_dynin.processors.templates import DIRECTIONS, from_head, infer_task
from vllm_dynin.processors.templates.directions import check_head
from vllm_dynin.sampling.block import BlockOptions
from vllm_dynin.sampling.decoder import Plan, RegionOptions
from vllm_dynin.sampling.maskgit import MaskGitOptions
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.sampling.schedules import mask_ratio
from vllm_dynin.sampling.speech import SpeechOptions
from vllm_dynin.tokens import Modality


@dataclass(frozen=True, kw_only=True)
class StandardOptions:
    """The options every serving system has, under their usual names.

    Args:
        max_tokens: tokens to generate; None is the task's default. Images go by their resolution.
        temperature: 0 is greedy.
        seed: of all draws of the request.
        logprobs: alternatives to report for each token, None for no log-probabilities.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class MediumSpan:
    """Stand-in ids in a prompt, in the place of the codes of a medium that is not encoded yet.

    Args:
        start: index of the first stand-in.
        length: how many there are; the medium may turn out to have fewer codes.
    """

    start: int
    length: int


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a plan is made from. Plain data: it is sent to the workers.

    Args:
        prompt_ids: the finished conditional head: everything up to the first target slot.
        standard: length, temperature, seed, log-probabilities.
        options: ours.
        media: stand-ins in `prompt_ids`, in order.
    """

    prompt_ids: tuple[int, ...]
    standard: StandardOptions
    options: DenoiseParams
    media: tuple[MediumSpan, ...] = ()

    def with_media(self, codes: Sequence[Sequence[int]]) -> PlanRequest:
        """The request with the token ids of each medium in the place of its stand-ins."""
        prompt_ids: list[int] = []
        end = 0
        for span, ids in zip(self.media, codes, strict=True):
            assert len(ids) <= span.length
            prompt_ids += [*self.prompt_ids[end : span.start], *ids]
            end = span.start + span.length
        prompt_ids += self.prompt_ids[end:]
        return replace(self, prompt_ids=tuple(prompt_ids), media=())


def make_plan(request: PlanRequest, config: LLaDAConfig) -> Plan:
    """Plan one request.

    Args:
        request: the prompt and its options; stand-ins are planned for as if they were codes.
        config: of the checkpoint; its `vocab_size` is the row count of the table.

    Raises:
        ValueError: the prompt is not one the task can have, or an option does not fit the task.
    """
    options = request.options
    task = options.task or infer_task(request.prompt_ids, config.vocabulary)
    # Before the options: those of a medium that the checkpoint lacks have no meaning.
    check_head(request.prompt_ids, task, config.vocabulary)
    defaults = defaults_of(task, config)
    scale = guidance_scale(options, task, config)
    _refuse_foreign(options, task)
    _refuse_idle(options, task, scale)
    canvas = from_head(
        request.prompt_ids,
        _targets(request, task, config),
        vocabulary=config.vocabulary,
        num_rows=config.vocab_size,
        parity=options.parity or Parity.DEFAULT,
        task=task,
        text_targets=_text_targets(options, task, config),
        is_guided=scale > 0,
        unconditional_head=options.uncond_prompt_token_ids,
    )
    regions = tuple(_region_options(region, canvas, request, defaults) for region in canvas.regions)
    return Plan(canvas=canvas, options=regions, guidance_scale=scale)


def asked_slots(request: PlanRequest, config: LLaDAConfig) -> int:
    """How many slots a request asks for, counted without laying them out.

    Raises:
        ValueError: the prompt is not one the task can have, or an option does not fit the task.
    """
    task = request.options.task or infer_task(request.prompt_ids, config.vocabulary)
    check_head(request.prompt_ids, task, config.vocabulary)
    targets = _targets(request, task, config)
    count = targets if isinstance(targets, int) else len(targets)
    return count + (_text_targets(request.options, task, config) or 0)


def guidance_scale(options: DenoiseParams, task: Task, config: LLaDAConfig) -> float:
    """S of classifier-free guidance: the request's, or the direction's default."""
    for scale in (options.cfg_scale, options.guidance_scale):
        if scale is not None:
            return scale
    return defaults_of(task, config).guidance_scale or 0.0


def image_size(options: DenoiseParams, task: Task, config: MMadaConfig) -> tuple[int, int]:
    """Height and width in pixels of the image a request asks for.

    Raises:
        ValueError: a side is no multiple of the codec's patch.
    """
    height, width = default_size(task, config)
    if options.resolution is not None:
        height = width = options.resolution
    height, width = options.height or height, options.width or width
    if height % config.image_patch or width % config.image_patch:
        raise ValueError(
            f"an image of {width}×{height} pixels (width × height): both must be multiples of "
            f"{config.image_patch}, the pixels per code"
        )
    return height, width


def _targets(request: PlanRequest, task: Task, config: LLaDAConfig) -> int | Sequence[int]:
    """Slots of the answer, or of its image where it has one."""
    options, output = request.options, DIRECTIONS[task].output
    known = options.target_token_ids
    if output is Modality.IMAGE:
        config = cast(MMadaConfig, config)
        height, width = image_size(options, task, config)
        count = (height // config.image_patch) * (width // config.image_patch)
        if known is not None and len(known) != count:
            raise ValueError(
                f"dynin_target_token_ids has {len(known)} ids, but an image of {width}×{height} "
                f"pixels has {count} codes; give one id per code, the mask id where to generate"
            )
        return count if known is None else known
    if known is not None:
        return known
    if options.max_duration is not None:
        return math.ceil(options.max_duration * UNITS_PER_SECOND)
    return request.standard.max_tokens or cast(int, defaults_of(task, config).max_tokens)


def _text_targets(options: DenoiseParams, task: Task, config: LLaDAConfig) -> int | None:
    if task is not Task.TEXT_IMAGE_TO_TEXT_IMAGE:
        return None
    return options.text_tokens or defaults_of(task, config).text_tokens


# Options that mean something for one kind of output only.
_BY_OUTPUT = {
    Modality.IMAGE: ("noise_schedule", "resolution", "width", "height"),
    Modality.SPEECH: ("max_duration", "style"),
    Modality.TEXT: ("remasking",),
}


def _refuse_foreign(options: DenoiseParams, task: Task) -> None:
    output = DIRECTIONS[task].output
    is_mixed = task is Task.TEXT_IMAGE_TO_TEXT_IMAGE
    for kind, names in _BY_OUTPUT.items():
        if kind is output or (is_mixed and kind is Modality.TEXT):
            continue
        for name in names:
            if (value := getattr(options, name)) is not None:
                raise ValueError(
                    f"dynin_{name}={value!r} is for {kind.value} output, but {task.value} makes "
                    f"{output.value}; leave it out"
                )
    if options.text_tokens is not None and not is_mixed:
        raise ValueError(
            f"dynin_text_tokens={options.text_tokens} is for ti2ti, not for {task.value}; "
            "use max_tokens"
        )
    if options.block_length is not None and output is Modality.IMAGE and not is_mixed:
        raise ValueError(
            f"dynin_block_length={options.block_length}: an image is decoded as a whole; "
            "leave it out"
        )
    if options.style is not None:
        parse_style(options.style)


def _refuse_idle(options: DenoiseParams, task: Task, scale: float) -> None:
    """Refuse what would be ignored, and a style that does not exist."""
    if options.uncond_prompt_token_ids is not None and scale == 0:
        raise ValueError(
            f"dynin_uncond_prompt_token_ids with guidance off ({task.value} has s = 0 here); set "
            "dynin_guidance_scale above 0, or leave the prompt out"
        )
    if options.max_duration is not None and options.target_token_ids is not None:
        raise ValueError(
            f"dynin_max_duration={options.max_duration} beside dynin_target_token_ids, whose "
            "number is the length; give one of them"
        )
    if options.style is not None:
        parse_style(options.style)


def _region_options(
    region: Region, canvas: Canvas, request: PlanRequest, defaults: Defaults
) -> RegionOptions:
    standard, options = request.standard, request.options
    steps = options.steps or defaults.steps
    if region.decoder is Decoder.MASKGIT:
        return MaskGitOptions(
            num_steps=steps or region.num_slots,
            schedule=options.noise_schedule or defaults.noise_schedule or "cosine",
            temperature=standard.temperature,
            parity=canvas.parity,
            seed=standard.seed,
            num_logprobs=standard.logprobs,
        )
    if region.decoder is Decoder.SPEECH:
        return SpeechOptions(
            block_length=options.block_length or cast(int, defaults.block_length),
            num_steps=steps or region.num_slots,
            temperature=standard.temperature,
            parity=canvas.parity,
            seed=standard.seed,
            num_logprobs=standard.logprobs,
        )
    if canvas.task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
        steps = options.steps  # the default is that of the image
    return BlockOptions(
        block_length=options.block_length or cast(int, defaults.block_length),
        num_steps=steps or region.num_slots,
        temperature=standard.temperature,
        remasking=options.remasking or defaults.remasking or "low_confidence",
        seed=standard.seed,
        num_logprobs=standard.logprobs,
    )


def check_defaults(config: LLaDAConfig) -> None:
    """Check that the directions of a checkpoint can have the defaults it gives them.

    Args:
        config: of the checkpoint, its `generation_defaults` read.

    Raises:
        ValueError: one of them cannot be honoured; the message names the place.
    """
    for task in Task:
        if not config.generation_defaults.get(task.value):
            continue
        try:
            _check_direction(task, stated_defaults(task, config), config)
        except ValueError as error:
            rule = str(error).replace("dynin_", "")
            raise ValueError(f"generation_config.json: dynin.{task.value}: {rule}") from None


def _check_direction(task: Task, stated: Defaults, config: LLaDAConfig) -> None:
    options = stated.options()
    _refuse_foreign(options, task)
    if options.noise_schedule is not None:
        mask_ratio(options.noise_schedule, torch.tensor(0.0))
    if DIRECTIONS[task].output is not Modality.IMAGE:
        return
    if stated.max_tokens is not None:
        raise ValueError(
            f"max_tokens={stated.max_tokens}: the length of an image is its size; give that, or "
            "text_tokens for the text of ti2ti"
        )
    if isinstance(config, MMadaConfig):
        image_size(options, task, config)
