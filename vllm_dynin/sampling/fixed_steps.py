"""The denoising steps of a request whose counts are known beforehand, as a table on the host.

In `default` parity every step decides a number of slots that depends on the canvas's shape alone.
So which slots a step looks at, how many of them are masked and how many it decides can be written
down at admission, and no step has to ask the device. `CanvasDecoder` is the definition: its steps
are these, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vllm_dynin.canvas import Parity, Region
from vllm_dynin.sampling.columns import Columns
from vllm_dynin.sampling.decoder import Plan, RegionOptions
from vllm_dynin.sampling.maskgit import (
    MaskGitOptions,
    noise_scale,
    num_to_remask,
    scheduled_mask_count,
)
from vllm_dynin.sampling.schedules import block_spans, transfer_counts
from vllm_dynin.sampling.speech import SpeechOptions, speech_spans

Kind = Literal["text", "random", "sampled"]
"""How proposals are made and scored: `confidence.propose` by probability, the same ranked at
random, or `proposals.propose_sampled`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the steps of a region have in common.

    Args:
        index: of the region in its canvas, part of the key of the draws.
        columns: allowed ids.
        kind: how proposals are made and scored.
        temperature: of the proposals; 0 is the arg-max.
        seed: of the request.
    """

    index: int
    columns: Columns
    kind: Kind
    temperature: float
    seed: int


class FixedStep(NamedTuple):
    """One denoising step.

    Args:
        rule: of its region.
        block: index of the block within the region, part of the key of the draws.
        step: within the block, part of the key of the draws.
        start: first slot of the canvas that the step looks at.
        stop: slot behind the last.
        num_masked: masked slots among them before the step.
        num_chosen: of these, the most confident ones that are decided, or the least confident ones
            that stay masked.
        keeps_others: whether the chosen ones stay masked and all others are decided.
        noise: scale of the Gumbel noise on the logarithm of the confidence; the confidence itself
            ranks where this is None.
        num_committed: slots of the canvas, from the first on, that are final after the step.
    """

    rule: Rule
    block: int
    step: int
    start: int
    stop: int
    num_masked: int
    num_chosen: int
    keeps_others: bool
    noise: float | None
    num_committed: int


def has_fixed_steps(plan: Plan) -> bool:
    """Whether `fixed_steps` describes a request: the one predicate for the batched path.

    Not so in `reference` parity, where ties and proposed mask ids change counts, nor where a
    region may propose the mask id itself. Log-probabilities are kept by the decoders alone.
    """
    canvas = plan.canvas
    return canvas.parity is Parity.DEFAULT and all(
        options.num_logprobs is None and not _may_propose(region, canvas.mask_id)
        for region, options in zip(canvas.regions, plan.options, strict=True)
    )


def _may_propose(region: Region, token_id: int) -> bool:
    is_inside = any(first <= token_id < stop for first, stop in region.columns)
    return is_inside and token_id not in region.excluded


def fixed_steps(plan: Plan, num_resumed: int = 0) -> list[FixedStep]:
    """All steps of a request, in order.

    Args:
        plan: one of which `has_fixed_steps` is true.
        num_resumed: slots that were given out before the request was preempted.
    """
    canvas = plan.canvas
    is_masked = [slot == canvas.mask_id for slot in canvas.slots]
    is_masked[:num_resumed] = [False] * num_resumed
    last = len(canvas.regions) - 1
    steps: list[FixedStep] = []
    for index, (region, options) in enumerate(zip(canvas.regions, plan.options, strict=True)):
        if region.stop <= num_resumed and index < last:
            continue
        done = max(0, num_resumed - region.start)
        steps += _region_steps(index, region, options, is_masked[region.start : region.stop], done)
    # A block is final when its last step is through, and so is what was given behind it.
    ends = [step.start for step in steps[1:]] + [canvas.regions[last].stop]
    return [step._replace(num_committed=end) for step, end in zip(steps, ends, strict=True)]


def _region_steps(
    index: int, region: Region, options: RegionOptions, is_masked: list[bool], done: int
) -> Iterator[FixedStep]:
    """Steps of a region of which `done` slots are given out; `num_committed` is filled in later."""
    columns = Columns(region.columns, region.excluded)
    if isinstance(options, MaskGitOptions):
        temperature = 0.0 if options.is_greedy else 1.0
        rule = Rule(index, columns, "sampled", temperature, options.seed)
        yield from _image_steps(rule, region, options, sum(is_masked))
        return
    length = region.stop - region.start
    if isinstance(options, SpeechOptions):
        rule = Rule(index, columns, "sampled", options.sampling_temperature, options.seed)
        spans = speech_spans(length, options.block_length, options.num_steps)
    else:
        kind: Kind = "random" if options.remasking == "random" else "text"
        rule = Rule(index, columns, kind, options.temperature, options.seed)
        spans = block_spans(length, options.block_length, options.num_steps)
    for block, span in enumerate(spans):
        if span.start < done:
            continue
        num_masked = sum(is_masked[span.start : span.stop])
        for step, count in enumerate(transfer_counts(num_masked, span.num_steps)):
            if count == 0:
                break  # the counts do not rise again
            yield FixedStep(
                rule=rule,
                block=block,
                step=step,
                start=region.start + span.start,
                stop=region.start + span.stop,
                num_masked=num_masked,
                num_chosen=count,
                keeps_others=False,
                noise=None,
                num_committed=0,
            )
            num_masked -= count


def _image_steps(
    rule: Rule, region: Region, options: MaskGitOptions, num_masked: int
) -> Iterator[FixedStep]:
    num_scheduled = num_masked
    for step in range(options.num_steps):
        num_left = 0
        if step < options.num_steps - 1:
            wanted = scheduled_mask_count(num_scheduled, step, options.num_steps, options.schedule)
            num_left = num_to_remask(num_masked, wanted, options.parity)
        yield FixedStep(
            rule=rule,
            block=0,
            step=step,
            start=region.start,
            stop=region.stop,
            num_masked=num_masked,
            num_chosen=num_left,
            keeps_others=True,
            noise=noise_scale(step, options.num_steps, options.temperature),
            num_committed=0,
        )
        num_masked = num_left
        if num_left == 0:
            return
