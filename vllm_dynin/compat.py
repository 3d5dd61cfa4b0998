"""Every patch of vLLM, and every branch on its version. Nothing else touches what is not public.

Supported: vLLM 0.32 (tested, CPU wheel) and 0.33. Each entry says when it can go.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from packaging.version import Version

from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS
from vllm_dynin.sampling.params import note_stated

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.protocol import EngineClient
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.input_processor import InputProcessor

logger = logging.getLogger(__name__)

OLDEST, BEYOND = Version("0.32"), Version("0.34")


def check_vllm_version() -> None:
    """Refuse a vLLM this package was not checked with.

    Raises:
        RuntimeError: the installed version is outside the supported range.
    """
    found = Version(version("vllm"))
    if not OLDEST <= Version(found.base_version) < BEYOND:
        raise RuntimeError(
            f"vllm {found} is installed; vllm-dynin works with >={OLDEST},<{BEYOND}, because it "
            "uses internals of the V2 model runner; install a vllm in that range"
        )


def show_logs() -> None:
    """Let what this package logs come out where vLLM's own lines do, in the same form.

    vLLM gives its own logger a handler and leaves the root without one, so that nothing below a
    warning is seen of anybody else. An application that has set up logging keeps its way.
    Remove when vLLM shows the logs of its plugins.
    """
    ours = logging.getLogger("vllm_dynin")
    if not ours.handlers and not logging.getLogger().handlers:
        ours.addHandler(_LikeVLLM())
        ours.setLevel(logging.INFO)


class _LikeVLLM(logging.Handler):
    """Hands records to the handlers of vLLM's logger, which vLLM sets up after it loads plugins."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, unless it gets to handlers of the root by itself."""
        if logging.getLogger().handlers:
            return
        theirs: list[logging.Handler | None] = [*logging.getLogger("vllm").handlers]
        for handler in theirs or [logging.lastResort]:
            if handler is not None and record.levelno >= handler.level:
                handler.handle(record)


def prepare_cpu() -> None:
    """Make vLLM's V2 runner start, and its attention not crash, on a CPU.

    * `TRITON_INTERPRET`: the runner's bookkeeping kernels are Triton; without a compiler for CPUs
      they run in Triton's interpreter. Read when workers import the kernels, which is later.
      Remove when the CPU platform of vLLM brings kernels of its own for the V2 runner.
    * oneDNN keeps compiled code for the last 1,024 shapes it met, at about a megabyte each. Every
      recording has a length of its own, so a worker grew by a megabyte with each; the most recent
      128 are enough, and an operator's own setting holds. Remove when oneDNN counts bytes.
    * AMX: vLLM's CPU attention dies with SIGILL in a process that has not asked the kernel for
      the tile state. Remove when vLLM asks for it (0.32 does not).
    """
    import os

    import torch

    os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, and torch's
        os.environ.setdefault(name, "128")
    if torch.cpu._is_amx_tile_supported():
        torch._C._cpu._init_amx()


def replace_runner_kernels() -> list[str]:
    """Let vLLM's own override registry run the runner's bookkeeping kernels in NumPy.

    For machines without a GPU only, and after TRITON_INTERPRET is set, because this imports the
    runner's kernels. A kernel that another version of vLLM lacks, or gives other arguments, keeps
    running in Triton's interpreter, which is right and slow; the log says so. Calling this again
    changes nothing.

    Remove when vLLM brings CPU versions of these kernels.

    Returns:
        The names of the kernels that are replaced now.
    """
    from vllm.triton_utils.dispatcher import KernelOverride, register_kernels

    from vllm_dynin.kernels.runner_cpu import OVERRIDES

    wanted = {}
    replaced = []
    for name, replacements in OVERRIDES.items():
        module_name, _, attribute = name.rpartition(".")
        try:
            kernel = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            logger.warning("%s stays in Triton's interpreter, which is slow: %s", name, error)
            continue
        if isinstance(kernel, KernelOverride):
            if kernel.func in replacements:
                replaced.append(name)
            else:  # a platform plugin was first; its version is as good as ours
                logger.info("%s is already replaced by another plugin", name)
            continue
        theirs = list(kernel.arg_names)
        fitting = [function for function in replacements if kernel_arguments(function) == theirs]
        if not fitting:
            logger.warning(
                "%s stays in Triton's interpreter, which is slow: its arguments are %s, and the "
                "replacements were written for %s",
                name,
                theirs,
                [kernel_arguments(function) for function in replacements],
            )
            continue
        wanted[name] = fitting[0]
    with warnings.catch_warnings():
        # The registry looks at every attribute of every loaded module, deprecated ones included.
        warnings.simplefilter("ignore")
        with _without_modules("llvmlite"):
            register_kernels(wanted)
    return replaced + list(wanted)


def kernel_arguments(replacement: Callable[..., None]) -> list[str]:
    """The arguments of the kernel that a function of `kernels.runner_cpu` was written for."""
    from vllm_dynin.kernels.runner_cpu import LAUNCH_OPTIONS

    names = inspect.signature(replacement).parameters
    return [name for name in names if name not in LAUNCH_OPTIONS]


@contextmanager
def _without_modules(package: str) -> Iterator[None]:
    """Take a package out of `sys.modules` for a while.

    vLLM's registry reads the `__dict__` of every object of every loaded module, and objects of
    llvmlite (which librosa brings) answer that with a proxy that is no dictionary: it raises.
    Remove when `vllm.triton_utils.dispatcher` checks what it reads.
    """
    names = [name for name in sys.modules if name.split(".")[0] == package]
    hidden = {name: sys.modules.pop(name) for name in names}
    try:
        yield
    finally:
        sys.modules.update(hidden)


class Admission(Protocol):
    """The checks that `hook_admission` calls: what `model_executor/admission.py` defines."""

    Asked: Any
    admit_request: Callable[[EngineCoreRequest, Any, VllmConfig], None]
    refuse_beam_search: Callable[[Any], None]


def hook_admission(load: Callable[[], Admission]) -> None:
    """Check our requests in the frontend, where a refusal is a 4xx and costs nobody else anything.

    vLLM has no hook that sees a request's prompt and parameters together at admission, so
    `InputProcessor.process_inputs` is wrapped. Its beam search sends requests of its own, which
    look like ordinary ones; `resolve_watermarking` is the one call of the frontend that is given
    the parameters of a beam search. Remove when there is a hook for admission.

    Args:
        load: imports the checks. Called at the first request, because vLLM calls this in each of
            its processes and most of them never see one.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    original = InputProcessor.process_inputs
    if getattr(original, "_dynin", False):
        return
    signature = inspect.signature(original)

    @wraps(original)
    def process_inputs(self: InputProcessor, *args: Any, **kwargs: Any) -> EngineCoreRequest:
        if not _is_ours(self):
            return original(self, *args, **kwargs)
        checks = load()
        # Before vLLM fills in a length and adds what the checkpoint's generation config says.
        given = signature.bind(self, *args, **kwargs).arguments
        asked = checks.Asked.by(given["params"])
        request = original(self, *args, **kwargs)
        checks.admit_request(request, asked, self.vllm_config)
        return request

    resolve = InputProcessor.resolve_watermarking

    @wraps(resolve)
    def resolve_watermarking(self: InputProcessor, params: Any) -> Any:
        if _is_ours(self):
            load().refuse_beam_search(params)
        return resolve(self, params)

    process_inputs._dynin = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs  # type: ignore[method-assign]
    InputProcessor.resolve_watermarking = resolve_watermarking  # type: ignore[method-assign]


def share_no_media(model_config: ModelConfig) -> None:
    """Switch off the cache in which vLLM's frontend notes what media the engine core has.

    A medium is noted while its request is rendered. Where the request is refused after that, and
    many checks come after it, the medium never gets to the core, and the next client's request with
    the same one is sent without its data and fails. What a medium was encoded to is still shared
    by everybody who sends it: the worker keeps it by content (`processors/multimodal.py`).
    Remove when vLLM notes media as they are sent.
    """
    multimodal = model_config.multimodal_config
    if multimodal is None:
        return
    asked = multimodal.mm_processor_cache_gb
    if asked not in (0, type(multimodal)().mm_processor_cache_gb):
        logger.warning(
            "--mm-processor-cache-gb %s is not used: with that cache, a request that is refused "
            "makes the next one with the same picture fail; media are kept as codes, by content, "
            "where the model runs",
            asked,
        )
    multimodal.mm_processor_cache_gb = 0


def keep_what_was_stated() -> None:
    """Let admission know which length and temperature a client stated, and whether it did at all.

    vLLM's server turns a missing length into all that is left of the context, and a longer one
    into the same, and puts a temperature of its own in place of a missing one, before the engine
    sees either. They decide what a masked-diffusion model answers, so they must be neither guessed
    nor cut. Remove when the server passes on what it got.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.speech_to_text.transcription.protocol import TranscriptionRequest
    from vllm.entrypoints.speech_to_text.translation.protocol import TranslationRequest

    for request_class, *lengths in (
        (ChatCompletionRequest, "max_completion_tokens", "max_tokens"),
        (CompletionRequest, "max_tokens"),
        (ResponsesRequest, "max_output_tokens"),
        (TranscriptionRequest, "max_completion_tokens"),
        (TranslationRequest, "max_completion_tokens"),
    ):
        _keep_what_was_stated(request_class, tuple(lengths))


def _keep_what_was_stated(request_class: Any, lengths: tuple[str, ...]) -> None:
    original = request_class.to_sampling_params
    if getattr(original, "_dynin", False):
        return

    @wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> SamplingParams:
        params = original(self, *args, **kwargs)

        def given(name: str) -> Any:  # a field that has a default is there, but was not stated
            return getattr(self, name, None) if name in self.model_fields_set else None

        length = next((given(name) for name in lengths if given(name) is not None), None)
        return note_stated(params, max_tokens=length, temperature=given("temperature"))

    to_sampling_params._dynin = True  # type: ignore[attr-defined]
    request_class.to_sampling_params = to_sampling_params


def state_nothing_by_default() -> None:
    """The same for `LLM.chat` and `LLM.generate` without sampling parameters.

    vLLM makes some up then, and 16 tokens are in them. Called when an engine is configured, so the
    class is there if it is the one that starts it. Remove as `keep_what_was_stated`.
    """
    module = sys.modules.get("vllm.entrypoints.llm")
    if module is None or getattr(module.LLM.get_default_sampling_params, "_dynin", False):
        return
    original = module.LLM.get_default_sampling_params

    @wraps(original)
    def get_default_sampling_params(self: Any) -> SamplingParams:
        return note_stated(original(self), max_tokens=None, temperature=None)

    get_default_sampling_params._dynin = True  # type: ignore[attr-defined]
    module.LLM.get_default_sampling_params = get_default_sampling_params


def generation_configs(model_config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `generation_config.json` of a checkpoint says, and what the operator put over it.

    `--generation-config vllm` leaves the file out, another value names a folder to read it from;
    `--override-generation-config` is the second. Where the values themselves are read is vLLM's
    matter, but it takes a file that is no JSON for one that is not there.

    Raises:
        ValueError: the file is no JSON object.
    """
    source = model_config.generation_config
    folder = Path(model_config.model if source in ("auto", "vllm") else source)
    path = folder / "generation_config.json"
    if source != "vllm" and path.is_file():
        try:
            is_object = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not is_object:
            raise ValueError(f"{path} must hold a JSON object")
    found = {} if source == "vllm" else model_config.try_get_generation_config()
    return dict(found), dict(model_config.override_generation_config or {})


def tokenizer_of(model_config: ModelConfig) -> Any:
    """The tokenizer an engine will use, or None where it is told to have none.

    Loaded by vLLM and kept by it, so that this costs nothing. Remove when the hooks of
    `VerifyAndUpdateConfig` are given it.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config)


MEDIA_CONNECTOR = "dynin"
"""Name under which `entrypoints/media_connector.py` is known to vLLM."""

_SAFE_DEFAULTS = {
    "VLLM_MEDIA_CONNECTOR": MEDIA_CONNECTOR,
    "VLLM_MAX_IMAGE_PIXELS": str(DEFAULT_LIMITS.max_pixels),  # vLLM: 179 million
    "VLLM_MAX_N_SEQUENCES": "64",  # vLLM: 16,384
    "VLLM_MAX_COMPLETION_PROMPTS": "256",  # vLLM: 1,024
}


def lower_request_limits() -> None:
    """Let vLLM's server refuse what is only ever sent to hurt it; docs/security.md has the table.

    Each is an environment variable of vLLM, and keeps a value that the operator has given it.
    Called when an engine for this family is configured: servers of other models are as they were.
    """
    import os

    for name, value in _SAFE_DEFAULTS.items():
        os.environ.setdefault(name, value)


OPEN_PATHS = frozenset(
    {"/", "/health", "/ping", "/version", "/metrics", "/docs", "/redoc", "/openapi.json"}
)
OPEN_FOLDERS = ("/static/", "/metrics/", "/docs/")
"""What a server with `--api-key` shows to everybody: whether it is well, what it counts, how it is
spoken to, and the page, which asks for the key."""


def guard_every_path() -> None:
    """Let `--api-key` guard everything but `OPEN_PATHS` and `OPEN_FOLDERS`.

    vLLM's guard looks at paths below `/v1` only, and `/invocations`, `/generative_scoring`,
    `/inference/v1/generate`, `/tokenize`, `/scale_elastic_ep` and more are beside it.
    Called when an engine for this family is configured: servers of other models are as they were.
    Remove when vLLM's guard covers what generates.
    """
    from starlette.datastructures import Headers
    from starlette.responses import JSONResponse
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    original = AuthenticationMiddleware.__call__
    if getattr(original, "_dynin", False):
        return

    @wraps(original)
    def __call__(self: Any, scope: Any, receive: Any, send: Any) -> Any:
        is_asked = scope["type"] in ("http", "websocket") and scope.get("method") != "OPTIONS"
        is_closed = is_asked and not is_open(scope["path"].removeprefix(scope.get("root_path", "")))
        if is_closed and not self.verify_token(Headers(scope=scope)):
            return JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        return original(self, scope, receive, send)

    __call__._dynin = True  # type: ignore[attr-defined]
    AuthenticationMiddleware.__call__ = __call__  # type: ignore[method-assign]


def is_open(path: str) -> bool:
    """Whether a path of the server needs no API key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def forget_encoder_inputs(scheduler: Scheduler, request_id: str) -> None:
    """Drop vLLM's note of media that workers still hold for a request.

    0.33 notes their indices and looks them up in `request.mm_features` at every step; our scheduler
    empties that list after the prompt pass, because every denoising step starts from row 0 again
    and would have the media encoded anew. 0.32 keeps no such note. Make this unconditional when
    0.32 is no longer supported.
    """
    pending: dict[str, Any] | None = getattr(scheduler, "_pending_encoder_input_ids", None)
    if pending is not None:
        pending.pop(request_id, None)


async def ask_engines(
    client: EngineClient, method: str, arguments: tuple[Any, ...], turn: int | None
) -> list[Any]:
    """Run a method on the workers of one engine of a server, or of each.

    `collective_rpc` of a client of several engines (data parallel) runs it on all of them and gives
    the first one's answer: every image would be decoded by every engine, and what only the third
    knows could not be asked for. Remove when it can be told which engine is meant.

    Args:
        client: of the server.
        method: of our worker extension.
        arguments: of that method.
        turn: any number, which chooses an engine, the same one for the same number; None asks all.

    Returns:
        What rank 0 of each engine that was asked answered.
    """
    core = getattr(client, "engine_core", None)
    engines = getattr(core, "core_engines", ())
    if core is None or len(engines) < 2:
        return (await client.collective_rpc(method, args=arguments))[:1]
    if turn is not None:
        engines = [engines[turn % len(engines)]]
    answers = await asyncio.gather(
        *(
            core._call_utility_async("collective_rpc", method, None, arguments, None, engine=engine)
            for engine in engines
        )
    )
    return [ranks[0] for ranks in answers]


def _is_ours(processor: InputProcessor) -> bool:
    from vllm_dynin.config import LLaDAConfig

    return isinstance(processor.vllm_config.model_config.hf_config, LLaDAConfig)
