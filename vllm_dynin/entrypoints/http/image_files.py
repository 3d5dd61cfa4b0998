"""Images in answers: files in base64, and what they cost."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from vllm_dynin.entrypoints.http.service import Answer
from vllm_dynin.tokens import Vocabulary

ImageFormat = Literal["png", "jpeg", "webp"]


def file_of(image: Image.Image, image_format: ImageFormat, compression: int | None = None) -> bytes:
    """An image as a file.

    Args:
        image: RGB.
        image_format: of the file.
        compression: 0..100 for jpeg and webp, as their quality; None for the library's default.
    """
    target = io.BytesIO()
    options = {} if compression is None else {"quality": compression}
    image.save(target, image_format.upper(), **options)
    return target.getvalue()


def encoded(image: Image.Image, image_format: ImageFormat, compression: int | None = None) -> str:
    """An image as a file in base64; arguments as in `file_of`."""
    return base64.b64encode(file_of(image, image_format, compression)).decode("ascii")


def usage(answers: Sequence[Answer], vocabulary: Vocabulary) -> dict[str, Any]:
    """Tokens of answers, as the images API counts them.

    Args:
        answers: of one HTTP request.
        vocabulary: of the checkpoint.
    """
    sent = {"image_tokens": 0, "text_tokens": 0}
    made = {"image_tokens": 0, "text_tokens": 0}
    for answer in answers:
        for count, ids in ((sent, answer.prompt_token_ids), (made, answer.result.token_ids)):
            images = sum(token in vocabulary.image for token in ids)
            count["image_tokens"] += images
            count["text_tokens"] += len(ids) - images
    num_sent, num_made = sum(sent.values()), sum(made.values())
    return {
        "input_tokens": num_sent,
        "output_tokens": num_made,
        "total_tokens": num_sent + num_made,
        "input_tokens_details": sent,
        "output_tokens_details": made,
    }
