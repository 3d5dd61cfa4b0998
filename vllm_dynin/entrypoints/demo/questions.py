"""What a stand-in checkpoint is asked: the seven directions and mixtures of them, on real input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_dynin.api import Result
from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.demo.samples import Samples
from vllm_dynin.requests import (
    EditImage,
    ImageToText,
    Inpaint,
    MixedAnswer,
    Request,
    SpeechToSpeech,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
    VideoToSpeech,
    VideoToText,
)
from vllm_dynin.sampling.params import DenoiseParams

Medium = Image.Image | Sound | list[Image.Image]
_SEED = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One request of the demonstration.

    Args:
        title: the direction.
        asked: its text.
        request: to the engine.
        inputs: its media, to show.
        expected: the right answer in words; empty where there is none.
        is_right: judges an answer; None where nothing can be said.
    """

    title: str
    asked: str
    request: Request
    inputs: tuple[Medium, ...] = ()
    expected: str = ""
    is_right: Callable[[Result], bool] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """The media that are sent through the codecs and back.

    Args:
        images: by name.
        clip: uint8 [T, H, W, 3].
        speech: at the rate of the codec.
        speech_source: where it comes from.
    """

    images: dict[str, Image.Image]
    clip: NDArray[np.uint8]
    speech: Sound
    speech_source: str


def inputs_of(samples: Samples) -> Inputs:
    """What the questions below are about."""
    return Inputs(
        images={"photograph": samples.photo, "digit": samples.digit},
        clip=samples.clip,
        speech=samples.speech,
        speech_source=samples.speech_source,
    )


def general_questions(samples: Samples) -> list[Question]:
    """Questions that any checkpoint can be asked; nobody judges the answers."""
    photo, speech = samples.photo, (samples.speech.waveform, samples.speech.sample_rate)
    mask = _middle(photo)
    image = DenoiseParams(steps=16)
    few = DenoiseParams(steps=16, text_tokens=24)
    voice = DenoiseParams(style="gender-female")
    ask = "Reverse these words: cat tree moon"
    see, watch = "What is in the picture?", "What happens in the clip?"
    draw, say = "a photo of the digit 7", "Masked diffusion speaks."
    edit, paint, both = "Make it look like a drawing", "a portrait", "Change it, and say how"
    seed = _SEED
    rows: list[tuple[str, str, Request]] = [
        ("text → text", ask, TextToText(ask, max_tokens=32)),
        ("image → text", see, ImageToText(samples.digit, see, max_tokens=32)),
        ("video → text", watch, VideoToText(samples.clip, watch, max_tokens=32)),
        ("speech → text", "(transcribe)", SpeechToText(speech, max_tokens=32)),
        (
            "text → image",
            draw,
            TextToImage(draw, options=image, seed=seed, trajectory=True),
        ),
        ("image → image", edit, EditImage(photo, edit, options=image, seed=seed)),
        (
            "text → speech",
            say,
            TextToSpeech(say, options=voice, max_tokens=64, seed=seed),
        ),
        (
            "inpainting",
            f"{paint} (the middle is painted anew)",
            Inpaint(photo, mask, paint, options=image, seed=seed, trajectory=True),
        ),
        ("mixed answer", both, MixedAnswer(photo, both, options=few, seed=seed)),
        ("speech → speech", "(answer)", SpeechToSpeech(speech, max_tokens=64, seed=seed)),
        ("video → speech", watch, VideoToSpeech(samples.clip, watch, max_tokens=64, seed=seed)),
    ]
    media = _media(samples)
    return [
        Question(title=title, asked=asked, request=request, inputs=media.get(type(request), ()))
        for title, asked, request in rows
    ]


def _media(samples: Samples) -> dict[type[Request], tuple[Medium, ...]]:
    clip: list[Image.Image] = [Image.fromarray(frame).resize((192, 192)) for frame in samples.clip]
    masked = samples.photo.copy()
    masked.paste((255, 255, 255), mask=_middle(samples.photo))
    return {
        ImageToText: (samples.digit,),
        VideoToText: (clip,),
        SpeechToText: (samples.speech,),
        EditImage: (samples.photo,),
        Inpaint: (masked,),
        MixedAnswer: (samples.photo,),
        SpeechToSpeech: (samples.speech,),
        VideoToSpeech: (clip,),
    }


def _middle(image: Image.Image) -> Image.Image:
    """A mask over the middle quarter of an image."""
    mask = Image.new("L", image.size, 0)
    width, height = image.size
    mask.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return mask
