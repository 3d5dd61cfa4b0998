"""Between the routes and the engine: requests of `vllm_dynin.requests` in, results out.

Media are opened, and answers decoded, in a few threads of their own, so that neither the event
loop nor a denoising step waits for them. A request whose client has gone is taken out of the engine
by the cancellation of the coroutine that waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request as HTTPRequest
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.exceptions import (
    GenerationError,
    RetryableRequestError,
    VLLMClientError,
    VLLMNotFoundError,
    VLLMValidationError,
)
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tracing import contains_trace_headers, extract_trace_headers

from vllm_dynin import compat
from vllm_dynin.api import (
    Result,
    checkpoint_for,
    codec_place,
    make_result,
    sampling_params,
    vllm_prompt,
)
from vllm_dynin.entrypoints.http.failures import cause_of, request_id
from vllm_dynin.entrypoints.http.sizes import check_codes, size_refusal
from vllm_dynin.entrypoints.metrics import time_decoding
from vllm_dynin.model_executor.admission import Limits
from vllm_dynin.outputs import (
    ImagePiece,
    Part,
    Piece,
    TextPiece,
    decode_piece,
    output_pieces,
)
from vllm_dynin.requests import Checkpoint, Prompt, Request
from vllm_dynin.trajectory import Trajectory

NUM_THREADS = 4
"""Requests whose media are opened or decoded at the same time."""

_DEATH_POLL_SECONDS = 0.2
"""Between two looks at whether the engine is still there, while one of its methods runs."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """A request on its way.

    Args:
        request: what is asked.
        name: its id in the engine.
        prompt: as the engine takes it.
        params: likewise.
        headers: of the client, for tracing.
    """

    request: Request
    name: str
    prompt: Any
    params: SamplingParams
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """A result and what its client is charged for.

    Args:
        result: decoded.
        prompt_token_ids: of the conditional prompt, one id a code of its media.
        output: as the engine gave it.
    """

    result: Result
    prompt_token_ids: Sequence[int]
    output: RequestOutput


class MediaService:
    """Answers requests with the engine of the server.

    Args:
        engine: of the server; called in its event loop.
        models: names the server answers to.

    Raises:
        ValueError: the checkpoint is not of this family.
    """

    def __init__(self, engine: EngineClient, models: OpenAIServingModels) -> None:
        self._engine, self._models = engine, models
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(NUM_THREADS, "dynin-media")
        self.vllm_config = engine.vllm_config
        # A copy: the server's own tokenizer is used by its threads.
        tokenizer = copy.deepcopy(engine.renderer.get_tokenizer())
        self.checkpoint: Checkpoint = checkpoint_for(
            self.vllm_config, tokenizer, codec_place(self.vllm_config), self._call_workers
        )

    def _call_workers(
        self, method: str, arguments: tuple[Any, ...], turn: int | None
    ) -> Sequence[Any]:
        """See `codec_runner.Call`; called in a thread that is not the event loop's.

        Raises:
            EngineDeadError: the engine died meanwhile.
        """
        call = self._while_alive(compat.ask_engines(self._engine, method, arguments, turn))
        found: Sequence[Any] = asyncio.run_coroutine_threadsafe(call, self._loop).result()
        return found

    async def _while_alive(self, call: Coroutine[Any, Any, T]) -> T:
        """The result of a call to the engine, which ends with it.

        VLLM fails requests when the engine dies, and leaves calls of its methods waiting for ever.
        Remove when it fails those too.
        """
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                if self._engine.errored:
                    raise self._engine.dead_error
                await asyncio.wait({task}, timeout=_DEATH_POLL_SECONDS)
            return task.result()
        finally:
            task.cancel()

    def model_name(self, asked: str | None) -> str:
        """The name to answer under.

        Raises:
            VLLMNotFoundError: the server does not go by the name that was asked for.
        """
        names = [path.name for path in self._models.base_model_paths]
        if asked and not self._models.is_base_model(asked):
            raise VLLMNotFoundError(
                f"the model {asked!r} does not exist; use one of {', '.join(names)}"
            )
        return asked or names[0]

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run something that takes its time."""
        return await self._loop.run_in_executor(self._threads, work, *arguments)

    async def prepare(self, request: Request, http: HTTPRequest, prefix: str) -> Sent:
        """Open the media of a request and put it into the engine's terms.

        Args:
            request: what is asked.
            http: the HTTP request it came with.
            prefix: of the id it gets.

        Raises:
            ValueError: it does not fit the checkpoint.
        """
        prompt = await self.in_thread(self._prompt, request)
        params = sampling_params(request, prompt)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        return Sent(
            request=request,
            name=f"{prefix}-{request_id()}-{uuid.uuid4().hex[:8]}",
            prompt=vllm_prompt(prompt),
            params=params,
            headers=http.headers,
        )

    def _prompt(self, request: Request) -> Prompt:
        check_codes(request, self.checkpoint, Limits.of(self.vllm_config))
        return request.prompt(self.checkpoint)

    async def outputs(self, sent: Sent) -> AsyncGenerator[RequestOutput]:
        """What the engine gives for a request, as it comes; its last one is finished.

        Raises:
            VLLMValidationError: the engine refuses the request, or its media.
            GenerationError: it was taken out of the engine.
        """
        trace = None
        if contains_trace_headers(sent.headers):
            trace = extract_trace_headers(sent.headers)
        generator = self._engine.generate(sent.prompt, sent.params, sent.name, trace_headers=trace)
        try:
            async with aclosing(generator) as outputs:
                async for output in outputs:
                    _check_finish(output)
                    yield output
        except Exception as error:
            cause = cause_of(error)  # the engine's own error says nothing
            if isinstance(cause, VLLMClientError):  # a size is what most often does not fit
                await self._check_size(sent.request)
            if cause is error:
                raise
            raise cause from error

    async def _check_size(self, request: Request) -> None:
        with contextlib.suppress(ValueError):  # wrong in another way, of which the engine has said
            limits = Limits.of(self.vllm_config)
            found = await self.in_thread(size_refusal, request, self.checkpoint, limits)
            if found:
                raise VLLMValidationError(found)

    async def finished(self, sent: Sent) -> RequestOutput:
        """The last output of a request."""
        last = None
        async with aclosing(self.outputs(sent)) as outputs:
            async for output in outputs:
                last = output
        if last is None or not last.finished:
            raise RetryableRequestError(f"request {sent.name} ended without an answer; try again")
        return last

    async def answer(self, sent: Sent) -> Answer:
        """Answer a request and decode the answer."""
        output = await self.finished(sent)
        return await self.in_thread(self._decoded, sent, output)

    async def answers(self, requests: Sequence[Request], http: HTTPRequest, prefix: str) -> Any:
        """Answer requests at the same time; a list of `Answer`, in order."""

        async def one(request: Request) -> Answer:
            return await self.answer(await self.prepare(request, http, prefix))

        return await together([one(request) for request in requests])

    def pieces(self, sent: Sent, output: RequestOutput) -> list[Piece]:
        """What an answer is made of, not decoded."""
        checkpoint = self.checkpoint
        (pieces,) = output_pieces(output, sent.params, checkpoint.config, checkpoint.decode_text)
        return pieces

    def _decoded(self, sent: Sent, output: RequestOutput) -> Answer:
        futures = [self._decode(piece) for piece in self.pieces(sent, output)]
        parts = tuple(future.result() for future in futures)
        return Answer(
            result=make_result(sent.request, parts, output, self.checkpoint),
            prompt_token_ids=output.prompt_token_ids or (),
            output=output,
        )

    def _decode(self, piece: Piece) -> Future[Part]:
        start = partial(decode_piece, piece, self.checkpoint.codecs)
        if isinstance(piece, TextPiece):
            return start()
        return time_decoding("image" if isinstance(piece, ImagePiece) else "speech", start)

    async def peek(self, sent: Sent) -> Trajectory | None:
        """The answer as it has filled in so far; None where that cannot be told (yet)."""
        found = await self.in_thread(self.checkpoint.codecs.peek_trajectory, sent.name)
        if found is None:
            return None
        steps, ids = found
        mask_id = self.checkpoint.config.vocabulary.mask
        return Trajectory(token_ids=tuple(ids), steps=tuple(steps), mask_id=mask_id)


def _check_finish(output: RequestOutput) -> None:
    for completion in output.outputs:
        if completion.finish_reason in ("abort", "error"):
            raise GenerationError(
                f"request {output.request_id} was taken out of the engine "
                f"(finish_reason {completion.finish_reason}); send it again"
            )


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at the same time; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def service_of(http: HTTPRequest) -> MediaService:
    """The service of the server that got a request.

    Raises:
        NotImplementedError: it has none, because it serves another model; vLLM answers 501.
    """
    service: MediaService | None = getattr(http.app.state, "dynin", None)
    if service is None:
        raise NotImplementedError("the model that is served here is not one of vllm-dynin")
    return service
