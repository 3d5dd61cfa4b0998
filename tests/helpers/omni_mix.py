"""Requests of every direction as finished prompts, and what the reference driver answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from vllm import LLM, RequestOutput

from helpers.request_mix import Case, cut, stops_at_eos
from vllm_dynin.canvas import Decoder, Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.model_executor.admission import plan_request
from vllm_dynin.planning import make_plan
from vllm_dynin.processors import templates
from vllm_dynin.processors.templates import DIRECTIONS
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.reference.driver import run_plan
from vllm_dynin.sampling.decoder import CanvasDecoder, Plan
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.tokens import Modality

TEXT_BLOCK = 24
"""Tokens of the padded text blocks; the published 129 and 1,025 hold nothing but more padding."""


class Heads:
    """Random heads of every direction, reproducible.

    Args:
        config: of the checkpoint.
        seed: of the contents.
    """

    def __init__(self, config: DyninOmniConfig, seed: int = 0) -> None:
        self.vocabulary, self._rng = config.vocabulary, random.Random(seed)

    def text(self, count: int) -> list[int]:
        """Ids of text pieces."""
        return [self._rng.randrange(self.vocabulary.num_text_pieces) for _ in range(count)]

    def codes(self, count: int) -> list[int]:
        """Image codes, no offset."""
        return [self._rng.randrange(len(self.vocabulary.image)) for _ in range(count)]

    def units(self, count: int) -> list[int]:
        """Speech units, no offset."""
        return [self._rng.randrange(len(self.vocabulary.speech)) for _ in range(count)]

    def head(self, task: Task) -> list[int]:
        """A head of a direction, of varying length."""
        v, few = self.vocabulary, self._rng.randint
        query = self.text(few(1, 12))
        source = [self.codes(self._rng.choice([4, 9, 16]))]
        block = {"text_block": TEXT_BLOCK}
        if task is Task.TEXT_TO_TEXT:
            return list(templates.text_head(query, v, has_bos=self._rng.random() < 0.5))
        if task is Task.IMAGE_TO_TEXT:
            images = source + [self.codes(9) for _ in range(few(0, 2))]
            return list(templates.image_to_text_head(images, query, v))
        if task is Task.VIDEO_TO_TEXT:
            return list(templates.video_to_text_head([self.codes(4) for _ in range(3)], query, v))
        if task is Task.SPEECH_TO_TEXT:
            return list(templates.speech_to_text_head(self.units(few(1, 20)), query, v))
        if task is Task.TEXT_TO_IMAGE:
            return list(templates.text_to_image_head(query, v, **block))
        if task is Task.IMAGE_TO_IMAGE:
            return list(templates.image_to_image_head(source, query, v, **block))
        if task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
            return list(templates.text_image_to_text_image_head(source, query, v, **block))
        if task is Task.TEXT_TO_SPEECH:
            return list(templates.text_to_speech_head(query, v, **block))
        if task is Task.SPEECH_TO_SPEECH:
            return list(
                templates.speech_to_speech_head(
                    self.units(few(1, 20)),
                    v,
                    user_header_ids=self.text(2),
                    assistant_turn_ids=self.text(3),
                    images=source,
                )
            )
        assert task is Task.VIDEO_TO_SPEECH
        frames = [self.codes(4) for _ in range(3)]
        return list(templates.video_to_speech_head(frames, query, v, **block))


def case_of(head: Sequence[int], options: dict[str, Any], **standard: Any) -> Case:
    """A request; `options` are fields of `DenoiseParams`, `standard` of `SamplingParams`."""
    return Case(list(head), DenoiseParams(**options).to_sampling_params(**standard))


def mixed_directions(config: DyninOmniConfig, count: int, *, seed: int = 0) -> list[Case]:
    """Requests that go through all directions, both parities and both temperatures.

    Besides: guidance on, off and at the direction's default, schedules, sizes that are not square,
    block lengths and steps that do not divide, infilled targets, explicit unconditional prompts.
    """
    rng, heads = random.Random(seed), Heads(config, seed)
    cases = []
    for number in range(count):
        # Ten directions, and a period of 3 for the rest: every pair meets within 60.
        task = list(Task)[number % len(Task)]
        output = DIRECTIONS[task].output
        round_number = number // len(Task) + number
        parity = ("default", "reference")[round_number % 2]
        temperature = (0.0, 1.0, 0.7)[round_number % 3]
        head = heads.head(task)
        options: dict[str, Any] = {"parity": parity, "steps": rng.choice([3, 5, 8, 40])}
        scale = rng.choice([None, 0.0, 1.5])
        options["guidance_scale"] = scale
        max_tokens: int | None = rng.choice([5, 17, 24])
        if output is Modality.IMAGE:
            max_tokens = None
            options["noise_schedule"] = rng.choice([None, "linear", "pow2", "sigmoid"])
            width, height = rng.choice([(64, 64), (32, 80), (48, 48)])
            options |= {"width": width, "height": height}
            if task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
                options["text_tokens"] = rng.choice([6, 20])
            if number % 3 == 1:
                options["target_token_ids"] = _image_target(
                    rng, heads, config, width // 16 * (height // 16)
                )
        else:
            options["block_length"] = rng.choice([None, 4, 7])
            if number % 4 == 1:
                options["target_token_ids"] = _span_target(rng, heads, config, output)
        may_replace = output is Modality.IMAGE or scale == 1.5
        if number % 5 == 2 and scale != 0.0 and may_replace:
            options["uncond_prompt_token_ids"] = _second_head(head, heads, config, task)
        cases.append(
            case_of(
                head, options, max_tokens=max_tokens, temperature=temperature, seed=100 + number
            )
        )
    return cases


def _image_target(
    rng: random.Random, heads: Heads, config: DyninOmniConfig, count: int
) -> tuple[int, ...]:
    """Codes of which about half are to be generated."""
    v = config.vocabulary
    ids = [v.mask if rng.random() < 0.5 else id_ for id_ in v.image_ids(heads.codes(count))]
    ids[0] = v.mask
    return tuple(ids)


def _span_target(
    rng: random.Random, heads: Heads, config: DyninOmniConfig, output: Modality
) -> tuple[int, ...]:
    """Known ids around spans to be generated."""
    v = config.vocabulary
    known = heads.text(20) if output is Modality.TEXT else v.speech_ids(heads.units(20))
    known[3:9] = [v.mask] * 6
    known[rng.randint(12, 17) :] = [v.mask] * 3
    return tuple(known)


def _second_head(
    head: list[int], heads: Heads, config: DyninOmniConfig, task: Task
) -> tuple[int, ...]:
    """Another prompt of the direction; for images of the same length, as `reference` wants it."""
    if DIRECTIONS[task].output is not Modality.IMAGE:
        return tuple(heads.head(task))
    other, v = list(head), config.vocabulary
    end = len(other) - 2
    assert other[end] == v.eos
    other[end - 1] = heads.text(1)[0]
    return tuple(other)


def plan_of(case: Case, config: DyninOmniConfig) -> Plan:
    """The plan the engine must come to for a finished prompt."""
    params = case.params.clone()
    params.max_tokens = params.max_tokens or 1  # images go by their size
    return make_plan(plan_request(case.prompt_ids, params), config)


def decode(model: LLaDA, case: Case) -> CanvasDecoder:
    """Run the reference driver to the end."""
    *_, decoder = run_plan(model, plan_of(case, model.config))
    return decoder


def expected(model: LLaDA, case: Case) -> list[int]:
    """What serving must answer: the reference's slots up to the last generated region's end."""
    decoder = decode(model, case)
    last = decoder.plan.canvas.regions[-1]
    tokens = decoder.ids[: last.stop].tolist()
    v = model.config.vocabulary
    end = v.eoa if last.decoder is Decoder.SPEECH else v.eot
    return cut(tokens, (v.eos, end) if stops_at_eos(case.params) else ())


def run(llm: LLM, cases: Sequence[Case]) -> list[RequestOutput]:
    """Serve the requests in one call."""
    return llm.generate(
        [case.prompt for case in cases], [case.params for case in cases], use_tqdm=False
    )


def tokens_of(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    """The first answer of each request."""
    return [list(output.outputs[0].token_ids) for output in outputs]
