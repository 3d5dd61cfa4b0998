"""What a request asks for, checked before anything is spent on it.

`admit` runs in the frontend and refuses with a 4xx; `plan_request` turns an admitted request into
the plan that scheduler and workers follow. Both read the same options through one function, so a
request that was admitted can be planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vllm_dynin.canvas import Canvas, Decoder, Parity
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.defaults import defaults_of, stated_defaults
from vllm_dynin.model_executor import plan_transport
from vllm_dynin.model_executor.canvas_width import widest_canvas
from vllm_dynin.model_executor.row_layout import RowLayout
from vllm_dynin.planning import (
    MediumSpan,
    PlanRequest,
    StandardOptions,
    asked_slots,
    guidance_scale,
    make_plan,
)
from vllm_dynin.processors.media import CodecFolders, speech_input
from vllm_dynin.processors.templates import infer_task
from vllm_dynin.sampling.params import DenoiseParams, stated
from vllm_dynin.tokens import Vocabulary

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
    from vllm.sampling_params import BeamSearchParams
    from vllm.v1.engine import EngineCoreRequest

# Options of vLLM that masked diffusion cannot honour → the value that asks for nothing, and why.
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "structured_outputs": (None, "a grammar needs tokens in reading order"),
    "presence_penalty": (0.0, "tokens are decided in parallel"),
    "frequency_penalty": (0.0, "tokens are decided in parallel"),
    "repetition_penalty": (1.0, "tokens are decided in parallel"),
    "logit_bias": (None, "the columns of a task are fixed"),
    "bad_words": (None, "tokens are decided in parallel"),
    "allowed_token_ids": (None, "the columns of a task are fixed"),
    "min_tokens": (0, "the canvas has a fixed length; use dynin_stop_at_eos=false"),
    "min_p": (0.0, "proposals are drawn from all columns"),
    "top_p": (1.0, "proposals are drawn from all columns; lower the temperature instead"),
    "top_k": (0, "proposals are drawn from all columns; lower the temperature instead"),
    "prompt_logprobs": (None, "the prompt is not predicted"),
    "prompt_logprob_token_ids": (None, "the prompt is not predicted"),
    "logprob_token_ids": (None, "use logprobs"),
    "thinking_token_budget": (None, "the canvas has a fixed length"),
    "repetition_detection": (None, "tokens are decided in parallel"),
    "trace_decode_token_ids": (None, "tokens are decided in parallel"),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes of the running engine that bound a request.

    Args:
        max_model_len: rows of one request; vLLM fills a missing `max_tokens` in from it.
        max_num_batched_tokens: rows of a step.
        kv_rows: rows of the KV cache, in whole blocks.
        max_positions: positions the model was trained for, per stream.
        max_slots: widest canvas served.
        block_size: rows of one KV block.
    """

    max_model_len: int
    max_num_batched_tokens: int
    kv_rows: int
    max_positions: int
    max_slots: int
    block_size: int

    @property
    def max_rows(self) -> int:
        """Rows of one request in a step, both streams."""
        return min(self.max_model_len, self.max_num_batched_tokens, self.kv_rows)

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> Limits:
        """Read the sizes out of vLLM's configuration."""
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        block_size = vllm_config.cache_config.block_size
        # The frontend adds the blocks of its engines up; a request lies in one of them.
        num_blocks = vllm_config.cache_config.num_gpu_blocks or 1 << 30
        num_blocks //= _num_engines(vllm_config.parallel_config)
        kv_rows = (num_blocks - 1) * block_size
        return cls(
            max_model_len=model.max_model_len,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            kv_rows=kv_rows,
            max_positions=model.hf_config.max_sequence_length,
            max_slots=widest_canvas(vllm_config),
            block_size=block_size,
        )


def _num_engines(parallel: ParallelConfig) -> int:
    """Engines that one frontend hands requests to, with data parallel."""
    if parallel.data_parallel_external_lb:
        return 1
    if parallel.data_parallel_hybrid_lb:
        return max(1, parallel.data_parallel_size_local)
    return parallel.data_parallel_size


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a client wrote, before vLLM filled it in, cut it or added to it.

    Args:
        max_tokens: None where the client stated no length.
        temperature: None where it stated none.
        stop_token_ids: without those of the checkpoint's generation config.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    stop_token_ids: tuple[int, ...] = ()

    @classmethod
    def by(cls, params: SamplingParams | PoolingParams) -> Asked:
        """Read it out of the parameters the frontend was called with.

        Those of the HTTP server hold a length in any case; `compat.keep_what_was_stated` left the
        stated one beside it.
        """
        stop_token_ids = tuple(getattr(params, "stop_token_ids", None) or ())
        return cls(stop_token_ids=stop_token_ids, **stated(params))


def refuse_beam_search(params: SamplingParams | BeamSearchParams) -> None:
    """Refuse vLLM's beam search, which asks for one token after another.

    Raises:
        VLLMValidationError: the parameters are those of a beam search.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    if isinstance(params, BeamSearchParams):
        raise VLLMValidationError(
            "use_beam_search=True cannot be honoured: a beam extends an answer from left to right, "
            "and tokens are decided in parallel; leave it out, and use n for several answers",
            parameter="use_beam_search",
        )


def admit_request(request: EngineCoreRequest, asked: Asked, vllm_config: VllmConfig) -> None:
    """Check a request the frontend is about to hand to the engine core.

    Args:
        request: its sampling parameters are completed in place.
        asked: what the client wrote.
        vllm_config: of the engine.

    Raises:
        VLLMValidationError: see `admit`; vLLM's HTTP server answers 400.
    """
    from vllm.exceptions import VLLMValidationError

    if request.sampling_params is None or request.prompt_token_ids is None:
        raise VLLMValidationError("this model generates from token ids; pooling is not supported")
    try:
        if request.resumable:
            raise ValueError("streaming input is not supported; send the whole prompt at once")
        policy = vllm_config.scheduler_config.policy
        if request.priority and policy != "priority":
            raise ValueError(
                f"priority={request.priority} has no effect here, where scheduling is {policy}; "
                "leave it out, or start with --scheduling-policy priority"
            )
        admit(
            request.prompt_token_ids,
            request.sampling_params,
            cast(LLaDAConfig, vllm_config.model_config.hf_config),
            Limits.of(vllm_config),
            asked,
        )
        check_style(request.sampling_params, _speech_folder(vllm_config))
    except ValueError as error:
        raise VLLMValidationError(str(error)) from error


def admit(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    config: LLaDAConfig,
    limits: Limits,
    asked: Asked,
) -> None:
    """Check a request and put its defaults into `params`, in place.

    Args:
        prompt_ids: the prompt as the client gave it.
        params: the request's own copy of its sampling parameters; `max_tokens` is set. It becomes
            the number of tokens that will come out.
        config: of the checkpoint.
        limits: sizes of the engine.
        asked: what the client wrote. Its own stop tokens hold whatever the rule about EOS is.

    Raises:
        ValueError: an option cannot be honoured or the request does not fit.
    """
    if plan_transport.KEY in (params.extra_args or {}):
        raise ValueError(f"extra argument {plan_transport.KEY} is internal; remove it")
    options = DenoiseParams.parse(params.extra_args)
    _refuse_unsupported(params)
    if params.n > 1 and (options.report or options.trajectory):
        raise ValueError(
            f"n={params.n} with dynin_report or dynin_trajectory: an output has room for one "
            "report; send the prompt once for each answer, with seeds of their own"
        )
    _fill_in(prompt_ids, params, options, config, limits, asked)
    request = plan_request(prompt_ids, params)
    # Before the plan, which takes memory and time for each slot.
    _check_num_slots(asked_slots(request, config), limits)
    canvas = make_plan(request, config).canvas
    check_rows(canvas, limits)
    _check_logprobs(params, canvas)
    params.max_tokens = canvas.regions[-1].stop
    _apply_stop_rule(params, options, canvas, config.vocabulary)
    ends = params.stop_token_ids or []
    more = [token for token in asked.stop_token_ids if token not in ends]
    params.stop_token_ids = [*ends, *more]


def _fill_in(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    options: DenoiseParams,
    config: LLaDAConfig,
    limits: Limits,
    asked: Asked,
) -> None:
    """Put length and temperature where the client stated none, in place.

    The checkpoint's own defaults come first. Where it has none, what an API is known to do stays:
    16 tokens of `/v1/completions`, say. But the rest of the context, which vLLM fills in where an
    API has no default, is never meant, and the length changes the answer: every slot is visible as
    a mask.
    """
    task = options.task or infer_task(prompt_ids, config.vocabulary)
    own = stated_defaults(task, config)
    if asked.max_tokens is not None:
        params.max_tokens = asked.max_tokens  # vLLM's server has cut it to what fits
    elif own.max_tokens or params.max_tokens == limits.max_model_len - len(prompt_ids):
        is_guided = guidance_scale(options, task, config) > 0
        fits = _room(len(prompt_ids), is_guided, limits)
        params.max_tokens = max(1, min(defaults_of(task, config).max_tokens or fits, fits))
    # Several greedy answers would all be the same.
    is_idle = params.n > 1 and own.temperature == 0
    if asked.temperature is None and own.temperature is not None and not is_idle:
        params.temperature = own.temperature


def plan_request(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    mm_features: Sequence[MultiModalFeatureSpec] = (),
    seed: int = 0,
) -> PlanRequest:
    """What the plan of a request is made from.

    Args:
        prompt_ids: the prompt, stand-ins of media included.
        params: admitted sampling parameters.
        mm_features: vLLM's record of the media in the prompt, in order.
        seed: used where the client gave none.

    Raises:
        ValueError: an option of ours is invalid.
    """
    assert params.max_tokens is not None
    return PlanRequest(
        prompt_ids=tuple(prompt_ids),
        standard=StandardOptions(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            seed=seed if params.seed is None else params.seed,
            logprobs=params.logprobs,
        ),
        options=DenoiseParams.parse(params.extra_args),
        media=tuple(_span(feature.mm_position) for feature in mm_features),
    )


def _span(position: PlaceholderRange) -> MediumSpan:
    """The stand-ins of one medium, without the control tokens around them."""
    (first, last), *more = position.extract_embeds_range()
    assert not more
    return MediumSpan(start=first, length=last - first + 1)


def check_style(params: SamplingParams, speech_folder: str | None) -> None:
    """Check that the speech codec has the style a request asks for.

    Args:
        params: of the request.
        speech_folder: of the codec; None where the checkpoint has none.

    Raises:
        ValueError: it does not.
    """
    style = DenoiseParams.parse(params.extra_args).style
    if style is not None and speech_folder is not None:
        speech_input(speech_folder).styles.row(style)


def _speech_folder(vllm_config: VllmConfig) -> str | None:
    model = vllm_config.model_config
    return CodecFolders.find(model.model, cast(LLaDAConfig, model.hf_config)).speech


def _room(num_prompt: int, is_guided: bool, limits: Limits) -> int:
    """Slots that fit behind a prompt."""
    rows = (limits.max_rows - limits.block_size) // 2 if is_guided else limits.max_rows
    return min(min(rows, limits.max_positions) - num_prompt, limits.max_slots)


_SAID_AS = {
    "structured_outputs": "structured_outputs (response_format, text.format, a forced tool_choice)"
}
"""What clients write, where vLLM makes one field of several."""


def _refuse_unsupported(params: SamplingParams) -> None:
    for name, (neutral, reason) in _UNSUPPORTED.items():
        value = getattr(params, name, neutral)
        # Not by truth: 0 may mean something, and some values are arrays.
        is_neutral = value is None if neutral is None else value == neutral
        is_empty = isinstance(value, list | dict) and not value
        if is_neutral or is_empty or (name == "top_k" and value == -1):
            continue
        said = _SAID_AS.get(name) or f"{name}={repr(value)[:80]}"
        raise ValueError(f"{said} cannot be honoured: {reason}; leave it out")


def _apply_stop_rule(
    params: SamplingParams, options: DenoiseParams, canvas: Canvas, vocabulary: Vocabulary
) -> None:
    """Express `dynin_stop_at_eos` in vLLM's own stop fields."""
    stop = options.stop_at_eos
    if stop and params.ignore_eos:
        raise ValueError(
            "dynin_stop_at_eos=True contradicts ignore_eos=True; leave one of them out"
        )
    if stop is None:
        stop = not params.ignore_eos and options.parity is not Parity.REFERENCE
    params.ignore_eos = not stop
    params._eos_token_id = vocabulary.eos if stop else None
    # Those of the checkpoint's generation config are in the list already.
    ends = (vocabulary.eos, vocabulary.eot)
    others = [token for token in params.stop_token_ids or () if token not in ends]
    end = vocabulary.eoa if canvas.regions[-1].decoder is Decoder.SPEECH else vocabulary.eot
    params.stop_token_ids = [*others, end] if stop else others


def _check_logprobs(params: SamplingParams, canvas: Canvas) -> None:
    most = min(region.num_columns for region in canvas.regions)
    if params.logprobs is not None and not 0 <= params.logprobs <= most:
        raise ValueError(
            f"logprobs={params.logprobs} is out of range: an answer of this task has {most} "
            f"possible tokens; use 0 to {most}"
        )


def _check_num_slots(num_slots: int, limits: Limits) -> None:
    if num_slots > limits.max_slots:
        raise ValueError(
            f"the answer has {num_slots} slots, more than the widest canvas served, "
            f"{limits.max_slots}; ask for less, or start with --diffusion-config "
            f"'{{\"canvas_length\": {num_slots}}}'"
        )


def _sum_of(canvas: Canvas, layout: RowLayout) -> str:
    """How the rows of a request come together, in words."""
    parts = f"{canvas.num_prompt_tokens} prompt tokens and max_tokens={canvas.num_slots}"
    if canvas.unconditional is None:
        return parts
    padding = layout.conditional_start - layout.unconditional_stop
    return (
        f"{parts}, {layout.unconditional_stop} for the second stream of guidance included, and "
        f"{padding} up to a KV block"
    )


def check_rows(canvas: Canvas, limits: Limits) -> None:
    """Check that a canvas fits into a step of the engine.

    Args:
        canvas: of the request.
        limits: of the engine.

    Raises:
        ValueError: it does not.
    """
    _check_num_slots(canvas.num_slots, limits)
    layout = RowLayout.of(canvas, limits.block_size)
    if layout.num_rows > limits.max_rows:
        raise ValueError(
            f"the request needs {layout.num_rows} rows in a step ({_sum_of(canvas, layout)}) but "
            f"{limits.max_rows} fit: max_model_len is {limits.max_model_len}, a step holds "
            f"{limits.max_num_batched_tokens} rows (max_num_batched_tokens), and the KV cache "
            f"{limits.kv_rows}; ask for less, or start with larger --max-model-len and "
            "--max-num-batched-tokens"
        )
    if canvas.max_position >= limits.max_positions:
        raise ValueError(
            f"prompt and answer need {canvas.max_position + 1} positions but the model has "
            f"{limits.max_positions}; shorten the prompt or lower max_tokens"
        )
