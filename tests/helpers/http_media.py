"""Media as HTTP clients send and get them."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image
from vllm import LLM

from vllm_dynin import generate
from vllm_dynin.api import Result
from vllm_dynin.requests import Request


def file_of(image: Image.Image, image_format: str = "PNG") -> io.BytesIO:
    """An image as an upload."""
    target = io.BytesIO()
    image.save(target, image_format)
    target.seek(0)
    target.name = f"image.{image_format.lower()}"
    return target


def image_of(b64_json: str) -> Image.Image:
    """An image out of an answer."""
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def data_url(data: bytes, kind: str) -> str:
    """A `data:` URL, e.g. of kind `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def wav_of(samples: np.ndarray, rate: int) -> io.BytesIO:
    """Samples as an upload."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    target.seek(0)
    target.name = "speech.wav"
    return target


def expected(llm: LLM, requests: Sequence[Request]) -> list[Result]:
    """What the engine in this process answers."""
    return generate(llm, requests, use_tqdm=False)


def message_of(error: Any) -> str:
    """What a refusal says."""
    return str(error.value.body["message"])


def mp4_of(frames: np.ndarray) -> bytes:
    """Frames, uint8 [F, H, W, 3], as an H.264 file."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=5)
        track.height, track.width, track.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(track.encode(None))
    return target.getvalue()
