"""From a finished request to text, images and sound.

`answer_pieces` reads the ids of an answer: what they are, without running anything. `read_output`
also decodes them. Ids are never bent into range: one that does not belong is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.codec_runner import CodecRunner, Sound
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.defaults import defaults_of
from vllm_dynin.planning import image_size
from vllm_dynin.processors.templates import DIRECTIONS, infer_task, read_units
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.tokens import Modality

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

Part: TypeAlias = "str | Image.Image | Sound"
"""A piece of an answer, decoded."""
DecodeText: TypeAlias = Callable[[Sequence[int]], str]
"""Text of token ids; control tokens are left out."""


@dataclass(frozen=True)
class TextPiece:
    """Text of an answer."""

    text: str


@dataclass(frozen=True)
class ImagePiece:
    """An image of an answer: codes in raster order, no offset; height and width in pixels."""

    codes: tuple[int, ...]
    height: int
    width: int


@dataclass(frozen=True)
class SpeechPiece:
    """Speech of an answer: units without offset (none where nothing was said), style and seed."""

    units: tuple[int, ...]
    style: str | None = None
    seed: int | None = None


Piece = TextPiece | ImagePiece | SpeechPiece


def answer_pieces(
    token_ids: Sequence[int],
    *,
    task: Task,
    options: DenoiseParams,
    config: LLaDAConfig,
    decode_text: DecodeText,
    text: str | None = None,
    seed: int | None = None,
) -> list[Piece]:
    """What the ids of an answer are, in order.

    Args:
        token_ids: of the answer.
        task: its direction.
        options: of the request; they give the size of an image and the style of speech.
        config: of the checkpoint.
        decode_text: for text behind an image, and where `text` is None.
        text: text of a text answer, where vLLM has decoded it (it also cuts at `stop` strings).
        seed: of the request; a voice is drawn with the same one.

    Raises:
        ValueError: the ids are not a whole answer of this task.
    """
    output = DIRECTIONS[task].output
    if output is Modality.SPEECH:
        units = _units(token_ids, options, config)
        style = options.style or defaults_of(task, config).style
        return [SpeechPiece(units, style, seed)]
    if output is Modality.TEXT:
        return [TextPiece(decode_text(token_ids) if text is None else text)]
    image, rest = _image(token_ids, task, options, cast(MMadaConfig, config))
    if task is not Task.TEXT_IMAGE_TO_TEXT_IMAGE:
        return [image]
    return [image, TextPiece(decode_text(_text_behind_image(rest, config)))]


def _units(
    token_ids: Sequence[int], options: DenoiseParams, config: LLaDAConfig
) -> tuple[int, ...]:
    vocabulary = config.vocabulary
    if options.target_token_ids is None:
        return tuple(read_units(token_ids, vocabulary))
    # Infilling: what ends the speech inside a gap only ends the gap, the known part goes on.
    known_end = [token for token in token_ids if token in vocabulary.speech]
    return tuple(token - vocabulary.speech.start for token in known_end)


def _image(
    token_ids: Sequence[int], task: Task, options: DenoiseParams, config: MMadaConfig
) -> tuple[ImagePiece, list[int]]:
    height, width = image_size(options, task, config)
    count = (height // config.image_patch) * (width // config.image_patch)
    ids = list(token_ids)
    if len(ids) < count:
        raise ValueError(
            f"the answer has {len(ids)} of the {count} codes of a {width}×{height} image; it was "
            "cut short, so look at its finish_reason"
        )
    codes = config.vocabulary.image
    for slot, token in enumerate(ids[:count]):
        if token not in codes:
            raise ValueError(
                f"id {token} at slot {slot} of the image is no image code "
                f"({codes.start}..{codes.stop - 1}); these ids belong to another request or size"
            )
    pieces = tuple(token - codes.start for token in ids[:count])
    return ImagePiece(pieces, height, width), ids[count:]


def _text_behind_image(rest: list[int], config: LLaDAConfig) -> list[int]:
    """What follows the codes of a mixed answer is `<|eoi|> BOS text`."""
    frame = [config.vocabulary.eoi, config.vocabulary.bos]
    if rest[: len(frame)] != frame[: len(rest)]:
        raise ValueError(
            f"ids {rest[:2]} follow the image of a mixed answer, but {frame} must; was the image "
            "asked for in another size?"
        )
    return rest[len(frame) :]


def output_task(output: RequestOutput, options: DenoiseParams, config: LLaDAConfig) -> Task:
    """The direction of a request, from its options or its prompt."""
    return options.task or infer_task(output.prompt_token_ids or (), config.vocabulary)


def output_pieces(
    output: RequestOutput, params: SamplingParams, config: LLaDAConfig, decode_text: DecodeText
) -> list[list[Piece]]:
    """What a request was answered with: the pieces of each of its `n` completions, in order.

    Args:
        output: of vLLM, finished.
        params: of the request, as it was sent.
        config: of the checkpoint.
        decode_text: see `answer_pieces`.

    Raises:
        ValueError: the request is not finished, or as in `answer_pieces`.
    """
    if not output.finished:
        raise ValueError(f"request {output.request_id} is not finished; read it when it is")
    options = DenoiseParams.parse(params.extra_args)
    task = output_task(output, options, config)
    return [
        answer_pieces(
            completion.token_ids,
            task=task,
            options=options,
            config=config,
            decode_text=decode_text,
            text=completion.text if params.detokenize else None,
            seed=params.seed,
        )
        for completion in output.outputs
    ]


def decode_piece(piece: Piece, codecs: CodecRunner) -> Future[Part]:
    """Decode a piece of an answer; returns at once where codecs run in threads."""
    if isinstance(piece, ImagePiece):
        return cast("Future[Part]", codecs.decode_image(piece.codes, piece.height, piece.width))
    if isinstance(piece, SpeechPiece):
        found = codecs.decode_speech(piece.units, style=piece.style, seed=piece.seed)
        return cast("Future[Part]", found)
    done: Future[Part] = Future()
    done.set_result(piece.text)
    return done


def read_output(
    output: RequestOutput,
    params: SamplingParams,
    config: LLaDAConfig,
    decode_text: DecodeText,
    codecs: CodecRunner,
) -> list[list[Part]]:
    """Text, images and sound a request was answered with, of each of its `n` completions.

    Arguments and errors as in `output_pieces`; `codecs` decodes images and speech.
    """
    pending = [
        [decode_piece(piece, codecs) for piece in pieces]
        for pieces in output_pieces(output, params, config, decode_text)
    ]
    return [[future.result() for future in parts] for parts in pending]
