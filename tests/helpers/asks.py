"""Requests with one medium, text or option, on every route and in Python that takes one."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from helpers.http_media import file_of, mp4_of, wav_of
from helpers.omni_media import clip, photograph, recording
from vllm_dynin import (
    Chat,
    DenoiseParams,
    EditImage,
    FillSpeech,
    ImageToText,
    Inpaint,
    MixedAnswer,
    SpeechToSpeech,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
    VideoToSpeech,
    VideoToText,
)
from vllm_dynin.requests import Request


@dataclass(frozen=True)
class Ask:
    """An HTTP request.

    Args:
        path: of the route.
        body: JSON, or the fields of a form.
        files: of a form; None sends JSON.
    """

    path: str
    body: dict[str, Any]
    files: dict[str, bytes] | None = None


CHATS = "/v1/chat/completions"
FEW = {"max_tokens": 4, "temperature": 0}
STEPS = {"num_inference_steps": 2, "seed": 1}


def text_part(text: str = "What is this?") -> dict[str, Any]:
    return {"type": "text", "text": text}


def url_part(kind: str, data: bytes, media_type: str) -> dict[str, Any]:
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def chat(*parts: Any, **more: Any) -> Ask:
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    body = {"messages": [{"role": "user", "content": content}]}
    return Ask(CHATS, body | ({} if "modalities" in more else FEW) | more)


def edits(image: bytes, prompt: str = "invert it", mask: bytes | None = None, **more: Any) -> Ask:
    files = {"image": image} | ({} if mask is None else {"mask": mask})
    return Ask("/v1/images/edits", {"prompt": prompt} | STEPS | more, files)


def with_image(data: bytes, *, few: bool = False) -> dict[str, Ask]:
    """An image on every route that takes one; a `few` of them, for the next refusal of a reader."""
    part = url_part("image", data, "image/png")
    source = part["image_url"]["url"]
    content = [{"type": "input_image", "image_url": source}, {"type": "input_text", "text": "x"}]
    asks = {
        "chat": chat(part, text_part()),
        "chat, streamed": chat(part, text_part(), stream=True),
        "chat, second": chat(url_part("image", PNG, "image/png"), part, text_part()),
        "responses": Ask(
            "/v1/responses",
            {"input": [{"role": "user", "content": content}], "max_output_tokens": 4},
        ),
        "chat with image": chat(part, text_part(), modalities=["image"]),
        "chat with both": chat(part, text_part(), modalities=["text", "image"], **STEPS),
        "chat with audio": chat(part, url_part("audio", WAV, "audio/wav"), modalities=["audio"]),
        "edits": edits(data),
        "edits, second": Ask(
            "/v1/images/edits", {"prompt": "x"} | STEPS, {"image[]": PNG, "image": data}
        ),
        "edits, mask": edits(PNG, mask=data),
        "edits, streamed": edits(data, stream="true"),
    }
    kept = ("chat", "chat with image", "edits, mask")
    return {name: ask for name, ask in asks.items() if name in kept or not few}


def with_sound(data: bytes, *, few: bool = False) -> dict[str, Ask]:
    """A recording on every route that takes one; a `few` of them as for an image."""
    input_audio = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"},
    }
    part = url_part("audio", data, "audio/wav")
    asks = {
        "chat": chat(input_audio, text_part()),
        "chat, by URL": chat(part, text_part()),
        "chat, streamed": chat(part, text_part(), stream=True),
        "chat with audio": chat(input_audio, modalities=["audio"]),
        "transcriptions": Ask("/v1/audio/transcriptions", {}, {"file": data}),
        "transcriptions, streamed": Ask(
            "/v1/audio/transcriptions", {"stream": "true"}, {"file": data}
        ),
    }
    kept = ("chat", "chat with audio", "transcriptions")
    return {name: ask for name, ask in asks.items() if name in kept or not few}


def with_video(data: bytes) -> dict[str, Ask]:
    """A video on every route that takes one."""
    part = url_part("video", data, "video/mp4")
    return {
        "chat": chat(part, text_part()),
        "chat, streamed": chat(part, text_part(), stream=True),
        "chat with audio": chat(part, text_part(), modalities=["audio"]),
    }


def with_text(text: str, *, only_blocks: bool = False) -> dict[str, Ask]:
    """A text on every route; `only_blocks` for those whose prompt has room for so much."""
    image = url_part("image", PNG, "image/png")
    blocks = {
        "generations": Ask("/v1/images/generations", {"prompt": text} | STEPS),
        "generations, streamed": Ask(
            "/v1/images/generations", {"prompt": text, "stream": True} | STEPS
        ),
        "edits": edits(PNG, text),
        "edits with mask": edits(PNG, text, MASK),
        "speech": Ask("/v1/audio/speech", {"input": text, "max_tokens": 8}),
        "speech, streamed": Ask(
            "/v1/audio/speech", {"input": text, "max_tokens": 8, "stream": True}
        ),
        "chat with image": chat(text, modalities=["image"], **STEPS),
        "chat with edit": chat(image, text_part(text), modalities=["image"], **STEPS),
        "chat with both": chat(image, text_part(text), modalities=["text", "image"], **STEPS),
        "chat with audio": chat(text, modalities=["audio"], max_tokens=8),
    }
    if only_blocks:
        return blocks
    return blocks | {
        "chat": chat(text),
        "chat, streamed": chat(text, stream=True),
        "completions": Ask("/v1/completions", {"prompt": text} | FEW),
        "completions, streamed": Ask("/v1/completions", {"prompt": text, "stream": True} | FEW),
        "responses": Ask("/v1/responses", {"input": text, "max_output_tokens": 4}),
        "transcriptions": Ask("/v1/audio/transcriptions", {"instruction": text}, {"file": WAV}),
    }


def with_options(*without: str, **options: Any) -> dict[str, Ask]:
    """Options of ours on every route but those of `without`."""
    given = {f"dynin_{name}": value for name, value in options.items()}
    form = {"vllm_xargs": json.dumps(given)}
    body = {"vllm_xargs": given}
    asks = {
        "chat": chat("x", **body),
        "chat, streamed": chat("x", stream=True, **body),
        "completions": Ask("/v1/completions", {"prompt": "x"} | FEW | body),
        "responses": Ask("/v1/responses", {"input": "x", "max_output_tokens": 4} | body),
        "generations": Ask("/v1/images/generations", {"prompt": "x"} | body),
        "edits": Ask("/v1/images/edits", {"prompt": "x"} | form, {"image": PNG}),
        "speech": Ask("/v1/audio/speech", {"input": "x", "max_tokens": 8} | body),
        "chat with image": chat("x", modalities=["image"], **body),
        "chat with audio": chat("x", modalities=["audio"], max_tokens=8, **body),
        "transcriptions": Ask(
            "/v1/audio/transcriptions", {"max_completion_tokens": 4} | form, {"file": WAV}
        ),
    }
    kinds = {
        "text": ("chat", "chat, streamed", "completions", "responses", "transcriptions"),
        "image": ("generations", "edits", "chat with image"),
        "speech": ("speech", "chat with audio"),
    }
    left_out = {name for kind in without for name in kinds.get(kind, (kind,))}
    return {name: ask for name, ask in asks.items() if name not in left_out}


def asked_of(data: bytes) -> Callable[[], Sequence[Request]]:
    """An image in every Python request that takes one."""
    return lambda: (
        ImageToText(data),
        EditImage(data, "x"),
        MixedAnswer(data, "x"),
        Inpaint(data, Image.new("L", (8, 8), 255), "x"),
        SpeechToSpeech(recording(), [data]),
        Chat([{"role": "user", "content": [{"type": "image", "image": data}]}]),
    )


def heard(source: Any) -> Callable[[], Sequence[Request]]:
    """A recording in every Python request that takes one."""
    return lambda: (
        SpeechToText(source),
        SpeechToSpeech(source),
        FillSpeech(source, "x", 0.1, 0.2),
        Chat([{"role": "user", "content": [{"type": "audio", "audio": source}]}]),
    )


def seen(source: Any, **more: Any) -> Callable[[], Sequence[Request]]:
    """A video in every Python request that takes one."""
    return lambda: (VideoToText(source, **more), VideoToSpeech(source, **more))


def told(text: str) -> Callable[[], Sequence[Request]]:
    """A text in Python requests."""
    return lambda: (TextToImage(text), EditImage(photograph(), text), TextToSpeech(text))


def planned(*kinds: Callable[[DenoiseParams], Request], **options: Any) -> Callable[[], Any]:
    """Options of ours in Python requests."""
    return lambda: [kind(DenoiseParams(**options)) for kind in kinds]


def _text(options: DenoiseParams) -> Request:
    return TextToText("x", options=options, max_tokens=4)


def _image(options: DenoiseParams) -> Request:
    return TextToImage("x", options=options)


def _speech(options: DenoiseParams) -> Request:
    return TextToSpeech("x", options=options, max_tokens=8)


# Media, good and bad, as files.
PNG = file_of(photograph()).getvalue()
MASK = file_of(Image.new("L", photograph().size, 255)).getvalue()
WAV = wav_of(*recording()).getvalue()
JPEG = file_of(photograph(), "JPEG").getvalue()
MP4 = mp4_of(clip())


def _wav(count: int = 8000, *, rate: int = 16_000, channels: int = 1, kind: int = 1) -> bytes:
    width = 4 if kind == 3 else 2
    data = np.zeros(count * channels, np.float32 if kind == 3 else np.int16)
    head = struct.pack(
        "<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, 8 * width
    )
    body = b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", data.nbytes)
    return (
        b"RIFF" + struct.pack("<I", len(body) + 4 + data.nbytes) + b"WAVE" + body + data.tobytes()
    )


def _with_nan() -> bytes:
    data = bytearray(_wav(kind=3))
    data[-400:-396] = struct.pack("<f", float("nan"))
    return bytes(data)


def _huge_png(width: int, height: int) -> bytes:
    """A picture of which nothing but the size is there."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def _silent_film() -> bytes:
    """A sound file, where a film is wanted; in a container that films have too."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.rate = 16_000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return target.getvalue()
