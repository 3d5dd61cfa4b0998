"""From strings and encoded media to heads, canvases and training samples.

`PromptAssembler` joins the tokenizer, the prompt strings of `chat` and the layouts of `templates`.
Each direction has one method that returns its head; `canvas` and `sample` turn any head into what
serving or training needs. Media come in as codes and units: encoding them is done elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm_dynin.canvas import Canvas, Parity
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.processors import chat, templates
from vllm_dynin.processors.templates.pieces import wrap_image, wrap_speech
from vllm_dynin.processors.text_tokenizer import TextTokenizer, encode_text
from vllm_dynin.tokens import Vocabulary

Codes = Sequence[int]
"""Image codes in raster order, the codes of all frames of a video, or speech units; no offset."""


def expand_media(
    ids: Sequence[int],
    vocabulary: Vocabulary,
    *,
    images: Sequence[Codes] = (),
    videos: Sequence[Codes] = (),
    speech: Sequence[Codes] = (),
) -> tuple[int, ...]:
    """Put the codes of media where a rendered prompt has their placeholders.

    Args:
        ids: prompt ids; an image is soi eoi side by side, a video sov eov, speech soa eoa.
        vocabulary: the id layout.
        images: codes of each image, in the order of the placeholders.
        videos: codes of each video, frames in temporal order.
        speech: units of each recording.

    Raises:
        ValueError: a placeholder without its medium, a medium without a placeholder, or a code
            out of range.
    """
    v = vocabulary
    kinds: dict[tuple[int, int], tuple[str, Iterator[Codes]]] = {
        (v.soi, v.eoi): ("image", iter(images)),
        (v.sov, v.eov): ("video", iter(videos)),
        (v.soa, v.eoa): ("audio", iter(speech)),
    }
    given = {"image": len(images), "video": len(videos), "audio": len(speech)}
    found = dict.fromkeys(given, 0)
    out: list[int] = []
    index = 0
    while index < len(ids):
        kind = kinds.get((ids[index], ids[index + 1])) if index + 1 < len(ids) else None
        if kind is None:
            out.append(ids[index])
            index += 1
            continue
        name, codes = kind
        found[name] += 1
        medium = next(codes, None)
        if medium is not None:
            out += (wrap_speech if name == "audio" else wrap_image)(medium, vocabulary)
        index += 2
    for name, count in found.items():
        if count != given[name]:
            raise ValueError(
                f"the prompt has {count} {name} placeholders, but {given[name]} {name} inputs "
                "were given; name each medium once in the messages, and take control tokens out of "
                "their texts"
            )
    return tuple(out)


@dataclass(frozen=True, kw_only=True)
class PromptAssembler:
    """Builds the prompts of one checkpoint.

    Args:
        vocabulary: the id layout.
        num_rows: rows of the embedding table.
        encode: text to ids, adding nothing; control tokens inside the text become their ids.
        parity: `reference` also cuts texts that are too long, where `default` refuses them.
        max_length: positions a sequence may take, or None for no limit.
        image_text_block: tokens of the text block of image directions.
        speech_text_block: tokens of the text block of text to speech.
        video_text_block: tokens of the text block of video to speech.
    """

    vocabulary: Vocabulary
    num_rows: int
    encode: Callable[[str], Sequence[int]]
    parity: Parity = Parity.DEFAULT
    max_length: int | None = None
    image_text_block: int = templates.IMAGE_TEXT_BLOCK
    speech_text_block: int = templates.SPEECH_TEXT_BLOCK
    video_text_block: int = templates.VIDEO_TEXT_BLOCK

    @classmethod
    def of_checkpoint(
        cls, config: LLaDAConfig, tokenizer: TextTokenizer, *, parity: Parity = Parity.DEFAULT
    ) -> PromptAssembler:
        """The prompts of one checkpoint, with the text blocks its configuration names.

        Args:
            config: of the checkpoint; its `vocab_size` is the row count of the table.
            tokenizer: of the checkpoint, see `load_tokenizer`.
            parity: as for the constructor.
        """
        blocks = {}
        if isinstance(config, MMadaConfig):
            names = ("image_text_block", "speech_text_block", "video_text_block")
            blocks = {name: getattr(config, name) for name in names}
        return cls(
            vocabulary=config.vocabulary,
            num_rows=config.vocab_size,
            encode=partial(encode_text, tokenizer),
            parity=parity,
            max_length=config.max_sequence_length,
            **blocks,
        )

    @property
    def _overflow(self) -> templates.Overflow:
        return "cut" if self.parity is Parity.REFERENCE else "refuse"

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        images: Sequence[Codes] = (),
        videos: Sequence[Codes] = (),
        speech: Sequence[Codes] = (),
        enable_thinking: bool | None = None,
        interleave_media: bool = False,
    ) -> tuple[int, ...]:
        """Head of a conversation, with or without media, that is answered in text.

        Args:
            messages: as for `chat.render_chat`.
            images: codes of the image parts, in order of the messages.
            videos: codes of the video parts.
            speech: units of the audio parts.
            enable_thinking: as for `chat.render_chat`.
            interleave_media: as for `chat.render_chat`.

        Raises:
            ValueError: as `chat.render_chat` and `expand_media`.
        """
        text = chat.render_chat(
            messages, enable_thinking=enable_thinking, interleave_media=interleave_media
        )
        return expand_media(
            self.encode(text), self.vocabulary, images=images, videos=videos, speech=speech
        )

    def benchmark(self, question: str, *, enable_thinking: bool) -> tuple[int, ...]:
        """Head of the original's text benchmarks: no BOS."""
        turn = chat.benchmark_turn(question, enable_thinking=enable_thinking)
        return templates.text_head(self.encode(turn), self.vocabulary, has_bos=False)

    def speech_to_text(self, units: Codes, instruction: str | None = None) -> tuple[int, ...]:
        """Head of a transcription; the instruction defaults to the first of the original's six."""
        turn = chat.user_turn(instruction or chat.TRANSCRIBE_INSTRUCTIONS[0])
        return templates.speech_to_text_head(units, self.encode(turn), self.vocabulary)

    def text_to_image(self, prompt: str) -> tuple[int, ...]:
        """Head of an image generation; an empty prompt is allowed."""
        return templates.text_to_image_head(
            self.encode(prompt),
            self.vocabulary,
            text_block=self.image_text_block,
            overflow=self._overflow,
        )

    def image_to_image(
        self, instruction: str, sources: Sequence[Codes], *, is_alternative: bool = False
    ) -> tuple[int, ...]:
        """Head of an edit; `is_alternative` takes the original's other prompt."""
        build = templates.image_to_image_head
        if is_alternative:
            build = templates.image_to_image_alternative_head
        return build(
            sources,
            self.encode(instruction),
            self.vocabulary,
            text_block=self.image_text_block,
            overflow=self._overflow,
        )

    def text_image_to_text_image(self, prompt: str, sources: Sequence[Codes]) -> tuple[int, ...]:
        """Head of a mixed answer: an image, then text."""
        return templates.text_image_to_text_image_head(
            sources,
            self.encode(prompt),
            self.vocabulary,
            text_block=self.image_text_block,
            overflow=self._overflow,
        )

    def text_to_speech(self, sentence: str, instruction: str | None = None) -> tuple[int, ...]:
        """Head of a synthesis; the instruction defaults to the first of the original's six."""
        text = f"{instruction or chat.SPEAK_INSTRUCTIONS[0]}\n{sentence}"
        return templates.text_to_speech_head(
            self.encode(chat.user_turn(text)),
            self.vocabulary,
            text_block=self.speech_text_block,
            overflow=self._overflow,
        )

    def speech_to_speech(self, units: Codes, images: Sequence[Codes] = ()) -> tuple[int, ...]:
        """Head of a spoken answer to a spoken question, about images if any are given."""
        return templates.speech_to_speech_head(
            units,
            self.vocabulary,
            user_header_ids=self.encode(chat.USER_HEADER),
            assistant_turn_ids=self.encode(chat.END_OF_TURN + chat.ASSISTANT_HEADER),
            images=images,
        )

    def video_to_speech(self, question: str, frames: Sequence[Codes]) -> tuple[int, ...]:
        """Head of a spoken answer to a written question about a video."""
        return templates.video_to_speech_head(
            frames,
            self.encode(question),
            self.vocabulary,
            text_block=self.video_text_block,
            overflow=self._overflow,
        )

    def canvas(self, head_ids: Sequence[int], targets: int | Codes, **options: Any) -> Canvas:
        """The canvas behind a head; `targets` and `options` are those of `templates.from_head`.

        Raises:
            ValueError: as `templates.from_head`, or the sequence is longer than `max_length`.
        """
        canvas = templates.from_head(
            head_ids,
            targets,
            vocabulary=self.vocabulary,
            num_rows=self.num_rows,
            parity=self.parity,
            **options,
        )
        if self.max_length is not None and canvas.max_position >= self.max_length:
            raise ValueError(
                f"prompt and answer take {canvas.max_position + 1} positions, the model has "
                f"{self.max_length}; shorten the prompt or ask for fewer tokens"
            )
        return canvas

    def sample(
        self, head_ids: Sequence[int], target_ids: Sequence[int], **options: Any
    ) -> templates.Sample:
        """The training sequence of a head; arguments are those of `templates.build_sample`."""
        return templates.build_sample(
            head_ids,
            target_ids,
            vocabulary=self.vocabulary,
            num_rows=self.num_rows,
            parity=self.parity,
            **options,
        )
