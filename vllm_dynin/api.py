"""Ask for anything in one call: `generate(llm, [TextToImage("a cat"), SpeechToText("a.wav"), …])`.

All requests go to the engine together, whatever their directions.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec
from PIL import Image
from tqdm.auto import tqdm

from vllm_dynin.codec_runner import Call, CodecRunner, Place, Sound
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.outputs import Part, decode_piece, output_pieces
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.processors.media import CodecFolders
from vllm_dynin.processors.placeholders import stand_ins
from vllm_dynin.processors.text_tokenizer import TextTokenizer
from vllm_dynin.processors.thinking import split_thinking
from vllm_dynin.report import Report, read_report
from vllm_dynin.requests import Checkpoint, Prompt, Request, TextRequest
from vllm_dynin.sampling.params import note_stated
from vllm_dynin.trajectory import Trajectory

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.config import VllmConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The answer to one request.

    Args:
        request: what was asked.
        parts: text, images and sound of the answer, in order.
        token_ids: of the answer.
        finish_reason: as vLLM gives it: `stop` at an end token or stop string, `length` at the
            end of the canvas.
        report: steps, forwards and seconds; None where the engine gave none.
        trajectory: how the answer filled in, where the request asked for it.
    """

    request: Request
    parts: tuple[Part, ...]
    token_ids: tuple[int, ...]
    finish_reason: str | None
    report: Report | None = None
    trajectory: Trajectory | None = None

    @property
    def text(self) -> str | None:
        """The text, without its thinking part; None where there is none."""
        return self._split()[1]

    @property
    def reasoning(self) -> str | None:
        """The thinking part of the text; None where there is none."""
        return self._split()[0]

    @property
    def image(self) -> Image.Image | None:
        """The image; None where there is none."""
        return next((part for part in self.parts if isinstance(part, Image.Image)), None)

    @property
    def audio(self) -> Sound | None:
        """The sound; None where there is none."""
        return next((part for part in self.parts if isinstance(part, Sound)), None)

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens of the answer per forward; None without a report."""
        if self.report is None or not self.report.forwards:
            return None
        return len(self.token_ids) / self.report.forwards

    def _split(self) -> tuple[str | None, str | None]:
        text = next((part for part in self.parts if isinstance(part, str)), None)
        if text is None or not isinstance(self.request, TextRequest):
            return None, text
        thinking = getattr(self.request, "thinking", None)
        split = split_thinking(text, is_thinking=bool(thinking))
        return split.reasoning or None, split.content


def generate(
    llm: LLM,
    requests: Sequence[Request],
    *,
    use_tqdm: bool = True,
    codecs: Place | None = None,
) -> list[Result]:
    """Answer requests of any directions, all in one batch.

    Args:
        llm: vLLM's engine on a checkpoint of the family.
        requests: see `vllm_dynin.requests`.
        use_tqdm: show a progress bar.
        codecs: where generated media are decoded: `worker` (on the model's device, in short
            calls) or `local` (threads of this process); None takes the worker where the model is
            on an accelerator.

    Returns:
        One result a request, in order.

    Raises:
        ValueError: a request does not fit the checkpoint or the engine; none is answered then.
            The message names the request where it can be told which one it is.
    """
    from vllm.exceptions import VLLMValidationError

    if isinstance(requests, Request) or not isinstance(requests, Sequence):
        raise ValueError(f"requests={repr(requests)[:60]} must be a list of requests")
    for index, request in enumerate(requests):
        if not isinstance(request, Request):
            raise ValueError(
                f"request {index} is {repr(request)[:60]}; use a class of vllm_dynin such as "
                "TextToImage or Chat"
            )
    checkpoint = checkpoint_of(llm, codecs)
    prompts = [
        _named(index, request, lambda request=request: request.prompt(checkpoint))
        for index, request in enumerate(requests)
    ]
    params = [
        _named(index, request, partial(sampling_params, request, prompt))
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
    ]
    for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        _named(index, request, partial(_check, request, prompt, checkpoint))
    sent = [vllm_prompt(prompt) for prompt in prompts]
    try:
        outputs = llm.generate(sent, params, use_tqdm=use_tqdm)
    except VLLMValidationError as error:
        raise ValueError(str(error)) from error
    return _results(requests, params, outputs, checkpoint, use_tqdm)


_CHECKPOINTS: weakref.WeakKeyDictionary[Any, dict[Place, Checkpoint]] = weakref.WeakKeyDictionary()


def checkpoint_of(llm: LLM, codecs: Place | None = None) -> Checkpoint:
    """The checkpoint an engine serves, kept with its loaded codecs as long as the engine.

    Args:
        llm: the engine.
        codecs: as for `generate`.

    Raises:
        ValueError: the checkpoint is not of this family, or the worker cannot be asked.
    """
    vllm_config = llm.llm_engine.vllm_config
    kept = _CHECKPOINTS.setdefault(llm, {})
    place = codec_place(vllm_config, codecs)
    if place not in kept:
        call = partial(_call, weakref.ref(llm))
        kept[place] = checkpoint_for(vllm_config, llm.get_tokenizer(), place, call)
    return kept[place]


def codec_place(vllm_config: VllmConfig, codecs: Place | None = None) -> Place:
    """Where the codecs of an engine run.

    Args:
        vllm_config: of the engine.
        codecs: as for `generate`.

    Raises:
        ValueError: the checkpoint is not of this family, or the worker cannot be asked.
    """
    if codecs not in (None, *get_args(Place)):
        raise ValueError(f"codecs={codecs!r} must be 'worker', 'local' or None")
    config = vllm_config.model_config.hf_config
    if not isinstance(config, LLaDAConfig):
        raise ValueError(
            f"the engine serves model_type {config.model_type!r}; vllm_dynin.generate is for "
            "llada, mmada and dynin_omni"
        )
    is_reachable = _has_extension(vllm_config.parallel_config.worker_extension_cls)
    if codecs is None:
        is_cpu = vllm_config.device_config.device_type == "cpu"
        return "local" if is_cpu or not is_reachable else "worker"
    if codecs == "worker" and not is_reachable:
        raise ValueError(
            "codecs='worker' needs the package's worker extension, but the engine was started with "
            f"{vllm_config.parallel_config.worker_extension_cls!r}; derive that class from "
            "MediaWorkerExtension, or use codecs='local'"
        )
    return codecs


def checkpoint_for(
    vllm_config: VllmConfig, tokenizer: TextTokenizer, place: Place, call: Call
) -> Checkpoint:
    """What requests need to know of the checkpoint an engine serves, its codecs not loaded yet.

    Args:
        vllm_config: of the engine.
        tokenizer: of the checkpoint.
        place: what `codec_place` says.
        call: how to reach the workers of the engine.
    """
    config = cast(LLaDAConfig, vllm_config.model_config.hf_config)
    is_reachable = _has_extension(vllm_config.parallel_config.worker_extension_cls)
    folders = CodecFolders.find(vllm_config.model_config.model, config)
    runner = CodecRunner(
        folders, config.vocabulary, place=place, call=call if is_reachable else None
    )
    return Checkpoint(config, tokenizer, folders, runner)


def _has_extension(name: str) -> bool:
    """Whether the engine's worker extension, by its qualified name, is ours or derived from it."""
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from vllm_dynin.model_executor.worker_extension import MediaWorkerExtension

    return issubclass(resolve_obj_by_qualname(name), MediaWorkerExtension)


def _call(
    llm: weakref.ref[LLM], method: str, arguments: tuple[Any, ...], turn: int | None
) -> Sequence[Any]:
    engine = llm()
    assert engine is not None  # a request is being answered, so somebody holds it
    return engine.collective_rpc(method, args=arguments)[:1]  # an `LLM` has one engine


def _named(index: int, request: Request, make: Any) -> Any:
    """Make something of a request; an error says which request it was."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"request {index} ({type(request).__name__}): {error}") from error


def _check(request: Request, prompt: Prompt, checkpoint: Checkpoint) -> None:
    """Plan a request as the engine will, media aside: here an error can say whose it is."""
    head = stand_ins(prompt.token_ids, prompt.media, checkpoint.config.vocabulary)
    standard = StandardOptions(max_tokens=request.max_tokens)
    plan = PlanRequest(prompt_ids=head, standard=standard, options=prompt.options)
    make_plan(plan, checkpoint.config)
    if prompt.options.style is not None:
        checkpoint.codecs.check_style(prompt.options.style)


def sampling_params(request: Request, prompt: Prompt) -> SamplingParams:
    """The sampling parameters of a request; its answer comes with a report."""
    options = msgspec.structs.replace(
        prompt.options, report=True, trajectory=request.trajectory or None
    )
    is_text = isinstance(request, TextRequest)
    stated = {"max_tokens": request.max_tokens, "temperature": request.temperature}
    usual = {"temperature": request.default_temperature} if request.temperature is None else {}
    params = options.to_sampling_params(
        **stated | usual,
        seed=request.seed,
        stop=list(request.stop) if isinstance(request, TextRequest) else None,
        detokenize=is_text,
    )
    return note_stated(params, **stated)


def vllm_prompt(prompt: Prompt) -> Any:
    """The prompt as an engine takes it."""
    sent: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
    if prompt.media:
        sent["multi_modal_data"] = prompt.media
        sent["mm_processor_kwargs"] = prompt.media_options
    return sent


def _results(
    requests: Sequence[Request],
    params: Sequence[SamplingParams],
    outputs: Sequence[RequestOutput],
    checkpoint: Checkpoint,
    use_tqdm: bool,
) -> list[Result]:
    """Decode the answers; where codecs run in threads, all of them at once."""
    decode_text = checkpoint.decode_text
    pending: list[list[Future[Part]]] = []
    for index, (request, own, output) in enumerate(zip(requests, params, outputs, strict=True)):
        read = partial(output_pieces, output, own, checkpoint.config, decode_text)
        (pieces,) = _named(index, request, read)
        pending.append([decode_piece(piece, checkpoint.codecs) for piece in pieces])
    bar = tqdm(pending, desc="Decoding answers", disable=not use_tqdm)
    parts = [tuple(future.result() for future in futures) for futures in bar]
    return [
        make_result(request, own, output, checkpoint)
        for request, own, output in zip(requests, parts, outputs, strict=True)
    ]


def make_result(
    request: Request, parts: tuple[Part, ...], output: RequestOutput, checkpoint: Checkpoint
) -> Result:
    """The answer to a request, given its decoded parts; fetches the trajectory if one was kept.

    Raises:
        ValueError: the trajectory is not kept any more.
    """
    (completion,) = output.outputs
    report = read_report(output.kv_transfer_params)
    token_ids = tuple(completion.token_ids)
    trajectory = None
    if request.trajectory and report is not None and report.trajectory is not None:
        steps = checkpoint.codecs.take_trajectory(report.trajectory)
        trajectory = Trajectory(
            token_ids=token_ids,
            steps=tuple(steps[: len(token_ids)]),
            mask_id=checkpoint.config.vocabulary.mask,
        )
    return Result(
        request=request,
        parts=parts,
        token_ids=token_ids,
        finish_reason=completion.finish_reason,
        report=report,
        trajectory=trajectory,
    )
