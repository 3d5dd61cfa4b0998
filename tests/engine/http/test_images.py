"""`/v1/images/…` over a real socket: the images are those of `vllm_dynin.generate`."""

import io

import numpy as np
import openai
import pytest
from helpers.http_media import data_url, expected, file_of, image_of, message_of
from helpers.omni_media import photograph
from PIL import Image, ImageChops

from vllm_dynin import DenoiseParams, EditImage, Inpaint, TextToImage

PROMPT = "a cat on a red chair"


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and first.tobytes() == second.tobytes()


def test_generations_equal_the_engine(api, local):
    answer = api.images.generate(
        model="tiny",
        prompt=PROMPT,
        n=2,
        size="64x48",
        quality="low",
        response_format="b64_json",
        extra_body={"seed": 3, "vllm_xargs": {"dynin_report": True}},
    )
    options = DenoiseParams(steps=8, width=64, height=48)
    wanted = expected(local, [TextToImage(PROMPT, options=options, seed=3 + i) for i in range(2)])
    found = [image_of(data.b64_json) for data in answer.data]
    for image, result in zip(found, wanted, strict=True):
        assert same(image, result.image)
    assert not same(*found)
    assert (answer.size, answer.output_format) == ("64x48", "png")
    usage = answer.usage
    codes = sum(len(result.token_ids) for result in wanted)
    assert usage.output_tokens == usage.output_tokens_details.image_tokens == codes
    assert usage.total_tokens == usage.input_tokens + codes
    assert usage.input_tokens_details.image_tokens == 0
    steps = [report["steps"] for report in answer.model_extra["dynin_report"]]
    assert steps == [result.report.steps for result in wanted]


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_output_formats(api, image_format):
    sizes = []
    for compression in (5, 95):
        answer = api.images.generate(
            model="tiny",
            prompt=PROMPT,
            output_format=image_format,
            output_compression=compression,
            extra_body={"seed": 1, "num_inference_steps": 2},
        )
        assert image_of(answer.data[0].b64_json).format == image_format.upper()
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < sizes[1]


def test_links(routes, api, local):
    answer = api.images.generate(
        model="tiny",
        prompt=PROMPT,
        n=2,
        response_format="url",
        output_format="webp",
        extra_body={"seed": 3, "num_inference_steps": 2},
    )
    urls = [data.url for data in answer.data]
    assert len(set(urls)) == 2 and all(url.startswith(f"{routes.url}/v1/images/") for url in urls)
    with routes.client() as http:
        found = http.get(urls[0])
        assert found.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(found.content)).size == (64, 64)
        name = urls[0].rsplit("/", 1)[1]
        for other in (name.replace("webp", "png"), "0" * 32 + ".png", "..%2F..%2Fetc%2Fpasswd"):
            assert http.get(urls[0].replace(name, other)).status_code == 404


def test_a_negative_prompt_guides_away(api, local):
    body = {"seed": 5, "guidance_scale": 2.0, "num_inference_steps": 4}
    images = [
        image_of(
            api.images.generate(model="tiny", prompt=PROMPT, extra_body=body | more)
            .data[0]
            .b64_json
        )
        for more in ({}, {"negative_prompt": "a dog"})
    ]
    (plain,) = expected(
        local, [TextToImage(PROMPT, options=DenoiseParams(steps=4, guidance_scale=2.0), seed=5)]
    )
    assert same(images[0], plain.image)
    assert not same(*images)


@pytest.mark.parametrize("steps", [8, 2])
def test_streamed_images_fill_in(api, local, steps):
    events = list(
        api.images.generate(
            model="tiny",
            prompt=PROMPT,
            stream=True,
            partial_images=3,
            extra_body={"seed": 3, "num_inference_steps": steps},
        )
    )
    *partials, last = events
    assert last.type == "image_generation.completed"
    assert [event.type for event in partials] == ["image_generation.partial_image"] * min(
        3, steps - 1
    )
    assert [event.partial_image_index for event in partials] == list(range(len(partials)))
    options = DenoiseParams(steps=steps)
    (wanted,) = expected(local, [TextToImage(PROMPT, options=options, seed=3)])
    final = image_of(last.b64_json)
    assert same(final, wanted.image)
    grey = [share_of_grey(image_of(event.b64_json)) for event in events]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] > 0.5 > grey[-1]
    assert last.usage.output_tokens == len(wanted.token_ids)


def share_of_grey(image: Image.Image) -> float:
    return float((np.asarray(image.convert("RGB")) == 128).all(axis=-1).mean())


def test_edits_equal_the_engine(api, local):
    source = photograph()
    body = {"seed": 2, "num_inference_steps": 4}
    answer = api.images.edit(
        model="tiny", image=file_of(source), prompt="make it night", extra_body=body
    )
    several = api.images.edit(
        model="tiny",
        image=[file_of(source), file_of(photograph(1))],
        prompt="mix them",
        extra_body=body,
    )
    options = DenoiseParams(steps=4)
    wanted = expected(
        local,
        [
            EditImage(source, "make it night", options=options, seed=2),
            EditImage([source, photograph(1)], "mix them", options=options, seed=2),
        ],
    )
    assert same(image_of(answer.data[0].b64_json), wanted[0].image)
    assert same(image_of(several.data[0].b64_json), wanted[1].image)
    one, two = (each.usage.input_tokens_details.image_tokens for each in (answer, several))
    assert two == 2 * one > 0


@pytest.mark.parametrize("is_transparent", [True, False])
def test_a_mask_paints_a_part_anew(api, local, is_transparent):
    source = photograph()
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (0, 0, source.width // 2, source.height))
    upload = mask
    if is_transparent:  # as OpenAI's clients draw it
        upload = source.copy()
        upload.putalpha(ImageChops.invert(mask))
    body = {"seed": 2, "num_inference_steps": 4}
    painted = api.images.edit(
        model="tiny",
        image=file_of(source),
        mask=file_of(upload),
        prompt="a cat in a garden",
        extra_body=body,
    )
    edited = api.images.edit(
        model="tiny",
        image=file_of(source),
        mask=file_of(upload),
        prompt="add a cat",
        extra_body=body | {"vllm_xargs": '{"dynin_task": "i2i"}'},
    )
    options = DenoiseParams(steps=4)
    wanted = expected(
        local,
        [
            Inpaint(source, mask, "a cat in a garden", options=options, seed=2),
            EditImage(source, "add a cat", mask, options=options, seed=2),
        ],
    )
    for answer, result in zip((painted, edited), wanted, strict=True):
        assert same(image_of(answer.data[0].b64_json), result.image)


def by_url(image: Image.Image) -> dict[str, str]:
    return {"image_url": data_url(file_of(image).getvalue(), "image/png")}


def test_edits_as_json_equal_those_as_forms(routes):
    source, mask = photograph(), Image.new("L", photograph().size, 255)
    body = {"prompt": "make it night", "seed": 2, "num_inference_steps": 2}
    refused = {
        "no files are kept here": {"images": [{"file_id": "file-1"}]},
        "no files are kept": {"mask": {"file_id": "file-1"}},
        "send 1 to 16": {"images": []},
        "images is missing": {"images": None},
        "it must be an object": {"images": ["data:image/png;base64,AAAA"]},
        "an image without image_url": {"images": [{}]},
        "cannot be fetched": {"images": [{"image_url": "file:///etc/passwd"}]},
        "has an address that is not public": {"images": [{"image_url": f"{routes.url}/health"}]},
        "not a readable image": {"images": [{"image_url": "data:image/png;base64,AAAA"}]},
        "a body of JSON has images": {"image": "data:image/png;base64,AAAA"},
    }
    with routes.client() as http:
        for name, count in {"image": 1, "image[]": 2}.items():
            files = [(name, file_of(source))] * count
            form = http.post("/v1/images/edits", data=body, files=files)
            more = body | {"images": [by_url(source)] * count, "user": None}
            assert http.post("/v1/images/edits", json=more).json()["data"] == form.json()["data"]
        masked = {"image": file_of(source), "mask": file_of(mask)}
        form = http.post("/v1/images/edits", data=body, files=masked)
        good = body | {"images": [by_url(source)], "mask": by_url(mask)}
        assert http.post("/v1/images/edits", json=good).json()["data"] == form.json()["data"]
        for words, changes in refused.items():
            answer = http.post("/v1/images/edits", json=good | changes)
            assert answer.status_code == 400, (words, answer.text)
            assert words in answer.json()["error"]["message"]


BAD_GENERATIONS = {
    "size no multiple": ({"size": "63x64"}, 400, ("63×64", "multiples of 4")),
    "size no size": ({"size": "big"}, 400, ("big", "WIDTHxHEIGHT")),
    "size too large": ({"size": "4096x4096"}, 400, ("slots", "ask for less")),
    "n": ({"n": 11}, 400, ("11", "10")),
    "streamed url": ({"response_format": "url", "stream": True}, 400, ("url", "b64_json")),
    "quality": ({"quality": "ultra"}, 400, ("ultra", "high")),
    "style": ({"style": "vivid"}, 400, ("style", "leave it out")),
    "background": ({"background": "transparent"}, 400, ("transparent", "opaque")),
    "format": ({"output_format": "gif"}, 400, ("gif", "webp")),
    "compression": ({"output_compression": 3}, 400, ("3", "lossless")),
    "model": ({"model": "other"}, 404, ("other", "tiny")),
    "partial images": ({"partial_images": 2}, 400, ("partial_images=2", "stream")),
    "stream of two": ({"stream": True, "n": 2}, 400, ("n=2", "n=1")),
    "bad in a stream": ({"stream": True, "size": "63x64"}, 400, ("63×64",)),
    "unknown field": ({"extra_body": {"foo": 1}}, 400, ("foo", "fields are")),
    "path": ({"extra_body": {"vllm_xargs": {"vq_model_path": "/etc"}}}, 400, ("dynin_",)),
    "option": ({"extra_body": {"vllm_xargs": {"dynin_step": 1}}}, 400, ("dynin_steps",)),
    "trajectory": ({"extra_body": {"vllm_xargs": {"dynin_trajectory": 1}}}, 400, ("partial",)),
    "steps": ({"extra_body": {"num_inference_steps": 10_000}}, 400, ("10000", "8192")),
    "twice": (
        {"quality": "low", "extra_body": {"num_inference_steps": 3}},
        400,
        ("quality=8", "num_inference_steps=3"),
    ),
    "other direction": ({"extra_body": {"vllm_xargs": {"dynin_task": "t2s"}}}, 400, ("t2s",)),
    "seed": ({"extra_body": {"seed": -1}}, 400, ("-1",)),
    "too long": ({"prompt": "cat " * 100}, 400, ("403", "129", "shorten")),
    "negative without guidance": (
        {"extra_body": {"negative_prompt": "dog", "guidance_scale": 0}},
        400,
        ("guidance",),
    ),
}


@pytest.mark.parametrize(
    ("body", "status", "words"), BAD_GENERATIONS.values(), ids=list(BAD_GENERATIONS)
)
def test_bad_generations(api, body, status, words):
    with pytest.raises(openai.APIStatusError) as error:
        api.images.generate(**({"model": "tiny", "prompt": PROMPT} | body))
    assert error.value.status_code == status
    for word in words:
        assert word in message_of(error), message_of(error)


def test_bad_edits(api):
    image, small = file_of(photograph()), Image.new("L", (20, 20), 255)
    white = Image.new("L", photograph().size, 255)
    cases = [
        ({"image": b"not an image"}, "image"),
        ({"image": b""}, "empty"),
        ({"image": image, "mask": file_of(small)}, "20×20"),
        ({"image": image, "mask": file_of(Image.new("L", photograph().size))}, "marks nothing"),
        ({"image": image, "extra_body": {"vllm_xargs": "{"}}, "JSON"),
        ({"image": [file_of(small)] * 17}, "17 images"),
        ({"image": image, "mask": file_of(white), "size": "8192x8192"}, "codes"),
        ({"image": image, "extra_body": {"negative_prompt": "x"}}, "generations"),
    ]
    for body, word in cases:
        image.seek(0)
        with pytest.raises(openai.BadRequestError) as error:
            api.images.edit(model="tiny", prompt="x", **body)
        assert word in message_of(error), message_of(error)
    assert api.images.generate(model="tiny", prompt=PROMPT, extra_body={"num_inference_steps": 1})
