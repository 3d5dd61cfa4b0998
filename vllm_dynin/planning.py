"""From a prompt and its options to a plan: the canvas, and how each region of it is decoded.

Above `processors` (layouts) and `sampling` (decoding), below the engine and the reference driver,
which both follow the plan. No vLLM here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_dynin.canvas import Canvas, Parity, Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.processors.templates import from_head
from vllm_dynin.sampling.block import BlockOptions
from vllm_dynin.sampling.decoder import Plan
from vllm_dynin.sampling.params import DEFAULT_BLOCK_LENGTH, DenoiseParams


@dataclass(frozen=True, kw_only=True)
class StandardOptions:
    """The options every serving system has, under their usual names.

    Args:
        max_tokens: slots to generate.
        temperature: 0 is greedy.
        seed: of all draws of the request.
        logprobs: alternatives to report for each token, None for no log-probabilities.
    """

    max_tokens: int
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
        ValueError: the prompt is not one the task can have.
    """
    standard, options = request.standard, request.options
    scale = options.cfg_scale or 0.0
    canvas = from_head(
        request.prompt_ids,
        standard.max_tokens,
        vocabulary=config.vocabulary,
        num_rows=config.vocab_size,
        parity=Parity(options.parity or Parity.DEFAULT),
        task=None if options.task is None else Task(options.task),
        is_guided=scale > 0,
    )
    return Plan(
        canvas=canvas,
        guidance_scale=scale,
        options=BlockOptions(
            block_length=options.block_length or DEFAULT_BLOCK_LENGTH,
            num_steps=options.steps or _num_slots(canvas),
            temperature=standard.temperature,
            remasking=options.remasking or "low_confidence",
            seed=standard.seed,
            num_logprobs=standard.logprobs,
        ),
    )


def _num_slots(canvas: Canvas) -> int:
    return sum(region.num_slots for region in canvas.regions)
