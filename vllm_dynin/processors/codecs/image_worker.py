"""Decode one image file; run by `image_io.open_image` and `open_mask` in a process of its own.

    python -m vllm_dynin.processors.codecs.image_worker TASK < photo.jpg > pixels.raw

TASK is JSON: `what`, which is image or mask, and what `media_worker` adds. The output is width and
height, 32 bits each, little-endian, then uint8 [height, width, 3] of an image or [height, width] of
a mask.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from vllm_dynin.processors.codecs.image_decode import decode_image, decode_mask
from vllm_dynin.processors.codecs.limits import MediaLimits
from vllm_dynin.processors.codecs.media_worker import serve

SIZE = struct.Struct("<II")


def _decode(stream: BinaryIO, task: dict[str, Any], limits: MediaLimits) -> Iterator[bytes]:
    decode = decode_mask if task["what"] == "mask" else decode_image
    image = decode(stream, limits)
    yield SIZE.pack(*image.size)
    yield image.tobytes()


if __name__ == "__main__":
    sys.exit(serve(_decode, "PIL.Image"))
