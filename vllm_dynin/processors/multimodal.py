"""Adapter to vLLM's multimodal input: open, resize and resample here, encode on the worker.

A medium enters the prompt as two control tokens side by side (the chat template writes them). They
are replaced by the pair of its kind around as many stand-in ids as the medium will have codes; the
worker puts the codes there (model_state.py) and keeps them by content hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import isqrt
from typing import Any, cast

import msgspec
import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalDataDict, MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
    TimingContext,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from vllm_dynin.canvas import Task
from vllm_dynin.config import MMadaConfig
from vllm_dynin.defaults import source_side
from vllm_dynin.processors import chat
from vllm_dynin.processors.codecs.image_io import open_image, resize_and_crop, to_pixels
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError
from vllm_dynin.processors.codecs.silence import SILENCE_DBFS, is_silence
from vllm_dynin.processors.codecs.speech import SpeechInput
from vllm_dynin.processors.media import AUDIO_RATE, CodecFolders, codec_patch, speech_input
from vllm_dynin.processors.media_items import MediaParser
from vllm_dynin.processors.templates import infer_task
from vllm_dynin.tokens import Vocabulary

_EDITS = (Task.IMAGE_TO_IMAGE, Task.TEXT_IMAGE_TO_TEXT_IMAGE)
PIXELS, FRAMES, WAVEFORM = "image_pixels", "video_pixels", "audio_waveform"
"""Names under which processed media reach `embed_multimodal`."""

_PROFILED_SECONDS = 60  # the speech encoder works through longer recordings in pieces of this size


class MediaRefusedError(VLLMValidationError, ValueError):
    """A medium, or what is said about one, is refused: by fault of who sent it.

    vLLM's engine takes a plain `ValueError` for a failure of its own, and its server answers 500
    without a word.
    """


class MediaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mm_processor_kwargs` of a request. None means: the checkpoint's default."""

    resolution: int | None = None
    """Pixels a side of images and video frames; a multiple of the codec's patch (16). Default: the
    checkpoint's `image_resolution`, `video_resolution`, or for an edit `edit_resolution`."""

    num_frames: int | None = None
    """Frames taken of a video."""

    @classmethod
    def parse(cls, kwargs: Mapping[str, object]) -> MediaOptions:
        """Read the options.

        Raises:
            ValueError: an unknown name, or a value that is no positive integer.
        """
        try:
            options = msgspec.convert(dict(kwargs), cls)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"mm_processor_kwargs={dict(kwargs)!r}: {error}; options are resolution (pixels) "
                "and num_frames"
            ) from None
        for name in cls.__struct_fields__:
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ValueError(f"mm_processor_kwargs: {name}={value} must be at least 1")
        return options


class MediaInfo(BaseProcessingInfo):
    """What media this checkpoint takes, and how many tokens one becomes."""

    @cached_property
    def config(self) -> MMadaConfig:
        """The checkpoint's configuration."""
        return cast(MMadaConfig, self.get_hf_config())

    @cached_property
    def folders(self) -> CodecFolders:
        """Where its codecs are."""
        return CodecFolders.find(self.model_id, self.config)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of items of each kind there is a codec for."""
        limits: dict[str, int | None] = {}
        if self.folders.image is not None:
            limits |= {"image": None, "video": None}
        if self.folders.speech is not None:
            limits |= {"audio": None}
        return limits

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """There is no Hugging Face processor whose scopes could be asked."""
        return {}

    def get_data_parser(self) -> MultiModalDataParser:
        """Audio arrives mono at the rate the encoder wants."""
        return MediaParser(
            target_sr=AUDIO_RATE,
            target_channels=1,
            expected_hidden_size=self._get_expected_hidden_size(),
        )

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Codes of the largest item of each kind that fits a request."""
        image = self.num_image_codes(self.config.image_resolution)
        video = self.num_image_codes(self.config.video_resolution) * self.config.video_num_frames
        sizes = {"image": image, "video": video, "audio": seq_len}
        return {kind: min(seq_len, sizes[kind]) for kind in mm_counts}

    def num_image_codes(self, resolution: int) -> int:
        """Codes of a square image.

        Raises:
            ValueError: the resolution is no multiple of the codec's patch, or such an image alone
                is longer than any prompt.
        """
        assert self.folders.image is not None
        patch = codec_patch(self.folders.image)
        if resolution % patch:
            raise ValueError(
                f"resolution={resolution} must be a multiple of {patch}, the pixels per code"
            )
        count, most = (resolution // patch) ** 2, self.ctx.model_config.max_model_len
        if count > most:
            raise ValueError(
                f"resolution={resolution} makes {count} codes of an image, more than the "
                f"{most} tokens of the longest prompt; use {isqrt(most) * patch} or less"
            )
        return count

    @property
    def speech(self) -> SpeechInput:
        """What the speech codec takes."""
        assert self.folders.speech is not None
        return speech_input(self.folders.speech)


class MediaDummies(BaseDummyInputsBuilder[MediaInfo]):
    """Media for vLLM's memory profiling: the largest of each kind."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Placeholders of the items."""
        return "".join(chat.MEDIA_PLACEHOLDERS[kind] * n for kind, n in mm_counts.items())

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> MultiModalDataDict:
        """Blank images and frames, silence with a click (silence alone has no units)."""
        config, frames = self.info.config, self.info.config.video_num_frames
        side = config.image_resolution
        audio = np.zeros(_PROFILED_SECONDS * AUDIO_RATE, dtype=np.float32)
        audio[::100] = 0.5
        video = np.zeros((frames, config.video_resolution, config.video_resolution, 3), np.uint8)
        return {
            "image": self._get_dummy_images(
                width=side, height=side, num_images=mm_counts.get("image", 0)
            ),
            "video": [video] * mm_counts.get("video", 0),
            "audio": [audio] * mm_counts.get("audio", 0),
        }


class MediaProcessor(BaseMultiModalProcessor[MediaInfo]):
    """PIL images, frames and waveforms into tensors, placeholders into stand-in ids."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Process the media of one prompt; the source of an edit has the edit's resolution.

        Here, because nothing later sees the prompt beside the options, and in front of hashing,
        because the same image at another resolution is another medium. Names that came with the
        media are dropped: they are hashed, so that equal media are encoded once, and nobody gets
        what somebody else sent under the same name.

        Raises:
            MediaRefusedError: a medium is refused.
        """
        try:
            return self._applied(inputs, timing_ctx)
        except ValueError as error:
            raise MediaRefusedError(str(error)) from error

    def _applied(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        config = self.info.config
        _check_placeholders(inputs, config.vocabulary)
        _check_given(inputs)
        options = inputs.hf_processor_mm_kwargs
        task = infer_task(inputs.prompt, config.vocabulary)
        if task in _EDITS and "resolution" not in options:
            options = {**options, "resolution": source_side(task, config)}
        inputs = replace(inputs, hf_processor_mm_kwargs=options, mm_uuid_items={})
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        options = MediaOptions.parse(hf_kwargs)
        config, processed = self.info.config, {}
        if images := cast(Sequence[Any], hf_data.get("images", ())):
            side = options.resolution or config.image_resolution
            self.info.num_image_codes(side)
            processed[PIXELS] = [
                to_pixels([resize_and_crop(open_image(image), side, side)])[0] for image in images
            ]
        if videos := cast(Sequence[Any], hf_data.get("videos", ())):
            side = options.resolution or config.video_resolution
            self.info.num_image_codes(side)
            default = config.video_num_frames
            processed[FRAMES] = [
                to_pixels(video.take(options.num_frames or video.num_frames or default, side))
                for video in videos
            ]
        if audios := cast(Sequence[Any], hf_data.get("audio", ())):
            least = self.info.speech.min_samples
            processed[WAVEFORM] = [_waveform(audio, least) for audio in audios]
        return BatchFeature(processed)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            PIXELS: MultiModalFieldConfig.batched("image"),
            FRAMES: MultiModalFieldConfig.batched("video"),
            WAVEFORM: MultiModalFieldConfig.batched("audio"),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        v = self.info.config.vocabulary

        def image(item: int) -> PromptUpdateDetails:
            pixels = _tensor(out_mm_kwargs, "image", item, PIXELS)
            count = self.info.num_image_codes(pixels.shape[-1])
            return _wrapped(v.soi, v.image.start, count, v.eoi)

        def video(item: int) -> PromptUpdateDetails:
            frames = _tensor(out_mm_kwargs, "video", item, FRAMES)
            count = len(frames) * self.info.num_image_codes(frames.shape[-1])
            return _wrapped(v.soi, v.image.start, count, v.eoi)

        def audio(item: int) -> PromptUpdateDetails:
            waveform = _tensor(out_mm_kwargs, "audio", item, WAVEFORM)
            count = -(-len(waveform) // self.info.speech.samples_per_unit)
            return _wrapped(v.soa, v.speech.start, count, v.eoa)

        return [
            PromptReplacement("image", [v.soi, v.eoi], image),
            PromptReplacement("video", [v.sov, v.eov], video),
            PromptReplacement("audio", [v.soa, v.eoa], audio),
        ]


def _check_placeholders(inputs: ProcessorInputs, v: Vocabulary) -> None:
    """Check that each medium has its place in the prompt and each place its medium.

    Raises:
        ValueError: the numbers differ.
    """
    pairs = Counter(pairwise(inputs.prompt))
    given = inputs.mm_data_items.get_all_counts()
    places = {"image": (v.soi, v.eoi), "video": (v.sov, v.eov), "audio": (v.soa, v.eoa)}
    for kind, pair in places.items():
        if pairs[pair] != given.get(kind, 0):
            raise ValueError(
                f"the prompt has {pairs[pair]} places for {kind} input "
                f"({chat.MEDIA_PLACEHOLDERS[kind]}), but {given.get(kind, 0)} came with it; take "
                "these control tokens out of the text, or send one medium for each place"
            )


def _check_given(inputs: ProcessorInputs) -> None:
    """Check that each medium is there: vLLM lets a client name one that it sent before.

    Raises:
        ValueError: a part has none.
    """
    for kind, items in inputs.mm_data_items.items():
        for number in range(items.get_count()):
            if items.get(number) is None:
                raise ValueError(
                    f"{kind} part {number + 1} has no {kind} in it; send the medium itself"
                )


def _wrapped(opening: int, stand_in: int, count: int, closing: int) -> PromptUpdateDetails:
    return PromptUpdateDetails.select_token_id(
        [opening, *[stand_in] * count, closing], embed_token_id=stand_in
    )


def _tensor(kwargs: MultiModalKwargsItems, kind: str, item: int, name: str) -> torch.Tensor:
    data = kwargs[kind][item]
    assert data is not None
    return cast(torch.Tensor, data[name].data)


def _waveform(audio: Any, min_samples: int) -> torch.Tensor:
    """float32 [N]; checked here, because here a refusal costs nobody else anything.

    Raises:
        MediaError: too few samples, too many, not finite, or nothing to be heard.
    """
    samples = np.asarray(audio, dtype=np.float32).reshape(-1)
    seconds = len(samples) / AUDIO_RATE
    DEFAULT_LIMITS.check("max_seconds", seconds, "the duration of the audio")
    if len(samples) < min_samples or not np.isfinite(samples).all():
        raise MediaError(
            f"the audio has {len(samples)} samples at {AUDIO_RATE} Hz; it needs {min_samples} or "
            "more, all of them finite numbers"
        )
    if is_silence(samples, AUDIO_RATE):  # the model would hear words in it
        raise MediaError(
            f"there is nothing to be heard in the audio: none of its {seconds:.1f} s is as loud as "
            f"{SILENCE_DBFS:g} dBFS; send a recording with sound, or leave it out"
        )
    return torch.from_numpy(samples)
