"""Pictures that reach the server."""

from __future__ import annotations

from PIL import Image
from vllm.multimodal.media.base import MediaWithBytes

from vllm_dynin.entrypoints.media_io.guarded import GuardedIO
from vllm_dynin.processors.codecs.image_io import open_image


class GuardedImageIO(GuardedIO[MediaWithBytes[Image.Image]]):
    """Opens pictures with `open_image`: RGB, upright. vLLM's cache knows them by their bytes."""

    medium = "image"
    options = ("image_mode",)  # vLLM's own, which it always passes; the codec takes RGB

    def decode(self, data: bytes) -> MediaWithBytes[Image.Image]:
        """The picture, and its file.

        Raises:
            MediaError: see `open_image`.
        """
        image = open_image(data)
        self.charge(3 * image.width * image.height)
        return MediaWithBytes(image, data)
