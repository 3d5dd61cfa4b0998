"""Requests of every kind, and what the reference driver answers to them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from vllm import LLM, SamplingParams

from vllm_dynin.config import LLaDAConfig
from vllm_dynin.model_executor.admission import plan_request
from vllm_dynin.planning import make_plan
from vllm_dynin.reference.backbone import LLaDA
from vllm_dynin.reference.driver import run_plan
from vllm_dynin.sampling.decoder import CanvasDecoder
from vllm_dynin.sampling.params import DenoiseParams


@dataclass(frozen=True)
class Case:
    """A finished prompt and its parameters."""

    prompt_ids: list[int]
    params: SamplingParams

    @property
    def prompt(self) -> dict[str, list[int]]:
        """As vLLM takes it."""
        return {"prompt_token_ids": self.prompt_ids}


def random_prompt(rng: random.Random, config: LLaDAConfig, length: int) -> list[int]:
    """Ids of text pieces."""
    return [rng.randrange(config.vocabulary.num_text_pieces) for _ in range(length)]


def mixed_cases(
    count: int, config: LLaDAConfig, *, seed: int = 0, max_prompt: int = 60, max_tokens: int = 40
) -> list[Case]:
    """Cases that cycle through every option; lengths, blocks and steps need not divide.

    The cycles have lengths without a common factor, so all pairs of options meet.
    """
    rng = random.Random(seed)
    temperatures = itertools.cycle([0.0, 1.0, 0.0, 0.7, 0.0])
    scales = itertools.cycle([None, 1.5, 0.0])
    options = itertools.cycle(itertools.product([None, "random"], [None, "reference"]))
    lengths = itertools.cycle(
        [length for length in (1, 5, 16, 31, 40, 23, 32) if length <= max_tokens]
    )
    cases = []
    for number in range(count):
        remasking, parity = next(options)
        own = DenoiseParams(
            steps=rng.choice([None, 3, 16, 100]),
            block_length=rng.choice([None, 1, 7, 8, 64]),
            cfg_scale=next(scales),
            remasking=remasking,
            parity=parity,
            stop_at_eos=rng.choice([None, None, False]),
        )
        params = own.to_sampling_params(
            max_tokens=next(lengths), temperature=next(temperatures), seed=number
        )
        cases.append(Case(random_prompt(rng, config, rng.randint(1, max_prompt)), params))
    return cases


def decode(model: LLaDA, case: Case) -> CanvasDecoder:
    """Run the reference driver; the returned decoder holds all slots, nothing cut."""
    plan = make_plan(plan_request(case.prompt_ids, case.params), model.config)
    *_, decoder = run_plan(model, plan)
    return decoder


def stops_at_eos(params: SamplingParams) -> bool:
    """The documented default: unless EOS is ignored or parity is the original's."""
    own = DenoiseParams.parse(params.extra_args)
    if own.stop_at_eos is not None:
        return own.stop_at_eos
    return not params.ignore_eos and own.parity != "reference"


def cut(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Everything up to and including the first of `ends`."""
    for index, token in enumerate(tokens):
        if token in ends:
            return list(tokens[: index + 1])
    return list(tokens)


def expected_tokens(model: LLaDA, case: Case) -> list[int]:
    """What serving must answer: the reference's slots, cut at the first EOS where that is asked."""
    tokens = decode(model, case).ids.tolist()
    vocabulary = model.config.vocabulary
    ends = (vocabulary.eos, vocabulary.eot) if stops_at_eos(case.params) else ()
    return cut(tokens, ends)


def generate(llm: LLM, cases: Sequence[Case]) -> list[list[int]]:
    """Tokens of the first answer to each case."""
    outputs = llm.generate(
        [case.prompt for case in cases], [case.params for case in cases], use_tqdm=False
    )
    return [list(output.outputs[0].token_ids) for output in outputs]
