"""Each way in hands pictures to `open_image`: chat's reader, and the parser of `LLM.generate`."""

import numpy as np
import pytest
from helpers.picture_variety import SHOWN, URLS, base64_of, encoded, original, pictures
from PIL import Image

pytest.importorskip("vllm", reason="the reader and the parser are vLLM's, overridden")

from vllm.exceptions import VLLMValidationError

from vllm_dynin.entrypoints.media_connector import GuardedMediaConnector
from vllm_dynin.processors.codecs.image_io import open_image
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.media_items import MediaParser


def same(first, second):
    return first.mode == second.mode == "RGB" and first.tobytes() == second.tobytes()


def test_the_reader_of_chat():
    connector = GuardedMediaConnector()
    for picture in pictures()[::12]:
        found = connector.fetch_image(URLS["plain"](base64_of(picture.data)))
        assert same(found.media, open_image(picture.data)), picture.name
        assert found.original_bytes == picture.data
    data = encoded(original(SHOWN[0]), "PNG")
    for name, form in URLS.items():
        assert same(connector.fetch_image(form(base64_of(data))).media, original(SHOWN[0])), name
    for data in (b"no picture" * 20, encoded(Image.new("1", (3000, 20)), "PNG")):
        with pytest.raises(MediaError) as said:
            open_image(data)
        with pytest.raises(VLLMValidationError) as told:
            connector.fetch_image(URLS["plain"](base64_of(data)))
        assert str(said.value) in str(told.value)


def test_the_parser_of_generate(tmp_path):
    image = original(SHOWN[2])
    grey = np.asarray(image.convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    path = tmp_path / "picture.tif"
    wide.save(path)
    sources = [image, np.asarray(image), path, path.read_bytes(), wide, Image.open(path)]
    sources += [image.convert(mode) for mode in ("1", "L", "P", "LA", "RGBA", "CMYK")]
    sources += [Image.fromarray(grey.astype(kind)) for kind in (np.int32, np.float32)]
    parser = MediaParser()
    (items,) = parser.parse_mm_data({"image": sources}).values()
    assert items.get_count() == len(sources)
    for number in range(len(sources)):
        assert same(items.get(number), image), sources[number]
    for single in (image, path):
        (items,) = parser.parse_mm_data({"image": single}).values()
        assert items.get_count() == 1 and same(items.get(0), image)
    for source in ("picture.tif", ["picture.tif"], [7]):
        with pytest.raises(MediaError, match=r"give a PIL image, a file's bytes, a pathlib\.Path"):
            parser.parse_mm_data({"image": source})
