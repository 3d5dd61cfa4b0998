"""Each request in vLLM's terms: with its media put in, its prompt is the direction's own head."""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers.tiny_tokenizer import make_tokenizer
from PIL import Image

from vllm_dynin import requests as R
from vllm_dynin.canvas import Parity, Task
from vllm_dynin.codec_runner import CodecRunner
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig
from vllm_dynin.entrypoints.stand_in import TINY_IMAGE_DIRECTORY
from vllm_dynin.processors import templates
from vllm_dynin.processors.assemble import expand_media
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, collapse
from vllm_dynin.processors.media import AUDIO_RATE, CodecFolders
from vllm_dynin.sampling.params import DenoiseParams

CODES, MORE_CODES, UNITS = (5, 6, 7), (8, 9), (1, 2, 1)


@pytest.fixture(scope="module")
def checkpoint() -> R.Checkpoint:
    tokenizer = make_tokenizer()
    config = DyninOmniConfig(
        text_vocab_size=len(tokenizer),
        codebook_size=8_192,
        speech_codebook_size=81,
        image_patch=4,
        image_resolution=16,
        video_resolution=8,
        video_num_frames=3,
        generation_resolution=16,
        edit_resolution=16,
        speech_text_block=300,
    )
    folders = CodecFolders(image=str(TINY_IMAGE_DIRECTORY), speech=str(TOY_SPEECH_DIRECTORY))
    return R.Checkpoint(config, tokenizer, folders, CodecRunner(folders, config.vocabulary))


@pytest.fixture(scope="module")
def text_only() -> R.Checkpoint:
    tokenizer = make_tokenizer()
    config = LLaDAConfig(text_vocab_size=len(tokenizer))
    folders = CodecFolders()
    return R.Checkpoint(config, tokenizer, folders, CodecRunner(folders, config.vocabulary))


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))


@pytest.fixture
def recording() -> tuple[np.ndarray, int]:
    time = np.arange(16_000) / 8_000
    return (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32), 8_000


CLIP = np.zeros((9, 10, 12, 3), np.uint8)


def test_text(checkpoint) -> None:
    assemble = checkpoint.assembler
    asked = [{"role": "user", "content": "hi"}]
    assert R.TextToText("hi").prompt(checkpoint).token_ids == list(assemble.chat(asked))
    system = [{"role": "system", "content": "be brief"}, *asked]
    found = R.TextToText("hi", system="be brief", thinking=True).prompt(checkpoint)
    assert found.token_ids == list(assemble.chat(system, enable_thinking=True))


def filled(prompt, checkpoint, **codes):
    return expand_media(prompt.token_ids, checkpoint.config.vocabulary, **codes)


def test_images_to_text(checkpoint, picture) -> None:
    prompt = R.ImageToText([picture, picture], "what?", resolution=8).prompt(checkpoint)
    query = checkpoint.assembler.encode(
        "<|start_header_id|>user<|end_header_id|>\nwhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )
    vocabulary = checkpoint.config.vocabulary
    expected = templates.image_to_text_head([CODES, MORE_CODES], query, vocabulary)
    assert filled(prompt, checkpoint, images=[CODES, MORE_CODES]) == expected
    assert prompt.media_options == {"resolution": 8}
    assert [image.size for image in prompt.media["image"]] == [(30, 20)] * 2


def test_video_to_text_sends_only_the_frames_it_looks_at(checkpoint) -> None:
    prompt = R.VideoToText(CLIP, "what?", num_frames=2).prompt(checkpoint)
    assert prompt.media["video"][0].shape == (2, 8, 8, 3)
    assert prompt.media_options == {"num_frames": 2}
    v = checkpoint.config.vocabulary
    assert filled(prompt, checkpoint, videos=[CODES])[:5] == (
        v.v2t,
        v.soi,
        *(v.image.start + code for code in CODES),
    )


def test_speech_to_text(checkpoint, recording) -> None:
    prompt = R.SpeechToText(recording, "Say it.").prompt(checkpoint)
    expected = checkpoint.assembler.speech_to_text(UNITS, "Say it.")
    assert filled(prompt, checkpoint, speech=[UNITS]) == expected
    samples, rate = prompt.media["audio"][0]
    assert (rate, len(samples), samples.dtype) == (AUDIO_RATE, 32_000, np.float32)


def test_chat_gathers_media_in_order(checkpoint, picture, recording) -> None:
    content = [
        {"type": "text", "text": "compare"},
        {"type": "image", "image": picture},
        {"type": "audio", "audio": recording},
        {"type": "image", "image": picture.rotate(90, expand=True)},
    ]
    prompt = R.Chat([{"role": "user", "content": content}]).prompt(checkpoint)
    assert [image.size for image in prompt.media["image"]] == [(30, 20), (20, 30)]
    assert len(prompt.media["audio"]) == 1
    filled(prompt, checkpoint, images=[CODES, MORE_CODES], speech=[UNITS])  # all have a place


def test_chat_part_without_its_source(checkpoint) -> None:
    message = {"role": "user", "content": [{"type": "image", "url": "x"}]}
    with pytest.raises(ValueError, match="give its source as"):
        R.Chat([message]).prompt(checkpoint)


def test_new_image(checkpoint) -> None:
    prompt = R.TextToImage("a cat").prompt(checkpoint)
    assert prompt.token_ids == checkpoint.assembler.text_to_image("a cat")
    assert not prompt.media


@pytest.mark.parametrize(
    ("request_class", "method"),
    [(R.EditImage, "image_to_image"), (R.MixedAnswer, "text_image_to_text_image")],
)
def test_image_answers_to_images(checkpoint, picture, request_class, method) -> None:
    prompt = request_class([picture, picture], "change").prompt(checkpoint)
    expected = getattr(checkpoint.assembler, method)("change", [CODES, MORE_CODES])
    assert filled(prompt, checkpoint, images=[CODES, MORE_CODES]) == expected
    assert prompt.media_options == {"resolution": 16}  # that of the result
    options = DenoiseParams(resolution=32)
    other = request_class(picture, "change", options=options).prompt(checkpoint)
    assert other.media_options == {"resolution": 32}


def test_speech_answers(checkpoint, picture, recording) -> None:
    assemble = checkpoint.assembler
    assert R.TextToSpeech("hi").prompt(checkpoint).token_ids == assemble.text_to_speech("hi")
    prompt = R.SpeechToSpeech(recording, [picture]).prompt(checkpoint)
    expected = assemble.speech_to_speech(UNITS, [CODES])
    assert filled(prompt, checkpoint, speech=[UNITS], images=[CODES]) == expected
    prompt = R.VideoToSpeech(CLIP, "what?").prompt(checkpoint)
    expected = assemble.video_to_speech("what?", [CODES, MORE_CODES])
    assert filled(prompt, checkpoint, videos=[(*CODES, *MORE_CODES)]) == expected


# --- infilling ------------------------------------------------------------------------------------


def left_half(image):
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (0, 0, image.width // 2, image.height))
    return mask


@pytest.mark.parametrize(
    "make",
    [
        lambda image, mask, **common: R.Inpaint(image, mask, "a cat", **common),
        lambda image, mask, **common: R.EditImage(image, "a cat", mask, **common),
    ],
    ids=["inpaint", "edit"],
)
def test_known_codes_are_the_images_own(checkpoint, picture, make) -> None:
    options = DenoiseParams(resolution=16)
    targets = make(picture, left_half(picture), options=options).prompt(checkpoint).options
    codes = checkpoint.codecs.encode_image(resize_and_crop(picture, 16, 16))
    v = checkpoint.config.vocabulary
    expected = [v.mask if i % 4 < 2 else v.image.start + code for i, code in enumerate(codes)]
    assert list(targets.target_token_ids) == expected


def test_inpainting_keeps_the_proportions_of_the_image(checkpoint, picture) -> None:
    options = R.Inpaint(picture, left_half(picture), "a cat").prompt(checkpoint).options
    assert (options.width, options.height) == (20, 12)  # 30×20 at about 16×16 pixels, in 4s
    assert len(options.target_token_ids) == 5 * 3


def test_outpainting_generates_the_new_side_only(checkpoint, picture) -> None:
    request = R.Inpaint.outward(picture, "a cat", left=30, seed=1)
    assert request.image.size == request.mask.size == (60, 20)
    assert request.image.crop((30, 0, 60, 20)).tobytes() == picture.tobytes()
    options = request.prompt(checkpoint).options
    columns = options.width // 4
    v = checkpoint.config.vocabulary
    is_new = [token == v.mask for token in options.target_token_ids]
    assert all(is_new[slot] == (slot % columns < columns / 2) for slot in range(len(is_new)))


@pytest.mark.parametrize("sides", [{}, {"left": -1, "right": 3}])
def test_outpainting_has_to_grow(picture, sides) -> None:
    with pytest.raises(ValueError, match="at least one side above 0"):
        R.Inpaint.outward(picture, "a cat", **sides)


def test_text_between_known_text(checkpoint) -> None:
    options = R.FillText("say", ["ab", R.Gap(3), "cd"]).prompt(checkpoint).options
    encode, mask = checkpoint.assembler.encode, checkpoint.config.vocabulary.mask
    assert list(options.target_token_ids) == [*encode("ab"), mask, mask, mask, *encode("cd")]
    assert options.stop_at_eos is False  # an EOS in the gap must not cut off what follows


def test_gap_without_tokens() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        R.Gap(0)


def test_speech_between_known_speech(checkpoint, recording) -> None:
    request = R.FillSpeech(recording, "hi", 0.5, 1.5, num_units=4)
    options = request.prompt(checkpoint).options
    samples = request.prompt(checkpoint).media
    assert not samples  # the known part travels as units
    units = checkpoint.codecs.encode_speech(load_audio(recording, target_rate=AUDIO_RATE))
    v = checkpoint.config.vocabulary
    assert options.target_token_ids.count(v.mask) == 4
    assert options.target_token_ids[-1] == v.eoa
    assert options.target_token_ids[0] == v.speech.start + collapse(units)[0]


def test_known_part_given_twice(checkpoint) -> None:
    options = DenoiseParams(target_token_ids=(1,))
    with pytest.raises(ValueError, match="leave it out"):
        R.FillText("say", ["ab", R.Gap(1)], options=options).prompt(checkpoint)


# --- what cannot be asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i, r: R.EditImage(i, "x"), "text only"),
        (lambda i, r: R.VideoToText(CLIP), "text only"),
        (lambda i, r: R.Inpaint(i, left_half(i), "x"), "no image codec"),
        (lambda i, r: R.SpeechToText(r), "no speech codec"),
        (lambda i, r: R.SpeechToSpeech(r), "no speech codec"),
        (lambda i, r: R.ImageToText(i), "no image codec"),
    ],
)
def test_media_for_a_text_only_checkpoint(text_only, picture, recording, make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make(picture, recording).prompt(text_only)


def test_media_that_cannot_be_read(checkpoint, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(MediaError, match="not a readable image"):
        R.ImageToText(tmp_path / "a.png").prompt(checkpoint)
    with pytest.raises(MediaError, match="cannot open"):
        R.SpeechToText(str(tmp_path / "b.wav")).prompt(checkpoint)


def test_media_as_path_bytes_and_array(checkpoint, picture, tmp_path) -> None:
    picture.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    sources = [tmp_path / "a.png", buffer.getvalue(), np.asarray(picture), picture]
    media = [R.ImageToText(source).prompt(checkpoint).media["image"][0] for source in sources]
    assert len({image.tobytes() for image in media}) == 1


# What is made wrongly, and words of the refusal.
MISMADE = {
    "task": (lambda: DenoiseParams(task="sing"), "dynin_task='sing' is invalid: use one of 't2t'"),
    "task of another type": (lambda: DenoiseParams(task=5), "dynin_task=5 is invalid: use one of"),
    "parity": (lambda: DenoiseParams(parity="exact"), "use one of 'default', 'reference'"),
    "remasking": (lambda: DenoiseParams(remasking="best"), "use one of 'low_confidence', 'random'"),
    "steps": (lambda: DenoiseParams(steps="8"), "dynin_steps='8' is invalid: expected `int"),
    "no steps": (lambda: DenoiseParams(steps=0), "dynin_steps=0 is invalid: expected `int` >= 1"),
    "scale": (lambda: DenoiseParams(cfg_scale=float("nan")), "dynin_cfg_scale=nan is invalid"),
    "style": (lambda: DenoiseParams(style=5), "dynin_style=5 is invalid: expected `str"),
    "targets": (lambda: DenoiseParams(target_token_ids="abc"), "dynin_target_token_ids='abc'"),
    "width": (lambda: DenoiseParams(width=64), "dynin_width and dynin_height go together"),
    "options": (lambda: R.TextToImage("x", options={"steps": 4}), "must be DenoiseParams"),
    "no options": (lambda: R.TextToImage("x", options=None), "options=None must be DenoiseParams"),
    "max_tokens": (lambda: R.TextToText("x", max_tokens="8"), "max_tokens='8' must be an integer"),
    "half a token": (
        lambda: R.TextToText("x", max_tokens=1.5),
        "max_tokens=1.5 must be an int",
    ),
    "temperature": (lambda: R.TextToText("x", temperature="hot"), "temperature='hot' must be"),
    "no number": (lambda: R.TextToText("x", temperature=float("inf")), "must be a finite number"),
    "seed": (lambda: R.TextToText("x", seed=True), "seed=True must be an integer or None"),
    "trajectory": (lambda: R.TextToImage("x", trajectory=1), "trajectory=1 must be True or False"),
    "thinking": (lambda: R.TextToText("x", thinking="yes"), "thinking='yes' must be True or False"),
    "stop": (lambda: R.TextToText("x", stop="."), "stop='.' must be a tuple of strings"),
    "a list in stop": (lambda: R.TextToText("x", stop=[5]), "must be a tuple of strings"),
    "system": (lambda: R.TextToText("x", system=5), "system=5 must be a string or None"),
    "text": (lambda: R.TextToText(None), "TextToText: prompt_text=None must be a string"),
    "description": (lambda: R.TextToImage(b"x"), "TextToImage: description=b'x' must be a string"),
    "inpainting": (lambda: R.Inpaint(None, None, 5), "Inpaint: description=5 must be a string"),
    "instruction": (lambda: R.EditImage(None, None), "instruction=None must be a string"),
    "mixed": (lambda: R.MixedAnswer(None, ["x"]), "instruction=['x'] must be a string"),
    "sentence": (lambda: R.TextToSpeech(5), "TextToSpeech: sentence=5 must be a string"),
    "how": (lambda: R.TextToSpeech("x", 5), "instruction=5 must be a string or None"),
    "start": (lambda: R.FillSpeech(b"", "x", "0", 1.0), "start='0' must be a finite number"),
    "stop, none": (lambda: R.FillSpeech(b"", "x", 0, float("nan")), "stop=nan must be a finite"),
    "units": (
        lambda: R.FillSpeech(b"", "x", 0, 1, "9"),
        "num_units='9' must be an int",
    ),
    "question": (lambda: R.ImageToText(b"", 5), "question=5 must be a string"),
    "resolution": (lambda: R.ImageToText(b"", resolution="64"), "resolution='64' must be an int"),
    "frames": (lambda: R.VideoToText(b"", num_frames=2.5), "num_frames=2.5 must be an integer"),
    "spoken frames": (
        lambda: R.VideoToSpeech(b"", num_frames="2"),
        "num_frames='2' must be an",
    ),
    "transcript": (lambda: R.SpeechToText(b"", 5), "instruction=5 must be a string or None"),
    "gap": (lambda: R.Gap("4"), "Gap: num_tokens='4' must be an integer"),
    "answer": (lambda: R.FillText("x", "y"), "answer='y' must be a tuple of strings and Gaps"),
    "parts": (lambda: R.FillText("x", (4,)), "answer=(4,) must be a tuple of strings and Gaps"),
    "conversation": (lambda: R.Chat("hello"), "Chat: messages='hello' must be a list of messages"),
    "message": (lambda: R.Chat(["hello"]), "Chat: message='hello' must be {'role'"),
    "role": (lambda: R.Chat([{"content": "x"}]), "must be {'role': a string"),
    "content": (lambda: R.Chat([{"role": "user", "content": 5}]), "content=5 must be a string, or"),
    "part": (
        lambda: R.Chat([{"role": "user", "content": ["x"]}]),
        "content=['x'] must be a str",
    ),
    "text of a part": (
        lambda: R.Chat([{"role": "user", "content": [{"type": "text", "text": 5}]}]),
        "must be a string, or a list of parts",
    ),
}


@pytest.mark.parametrize("name", MISMADE)
def test_what_is_made_wrongly(name):
    make, words = MISMADE[name]
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)


def test_names_of_enums_and_numbers_of_numpy():
    options = DenoiseParams(task="t2i", parity="reference", target_token_ids=[1, 2])
    assert options.task is Task.TEXT_TO_IMAGE and options.parity is Parity.REFERENCE
    assert options.target_token_ids == (1, 2)
    request = R.TextToText("x", max_tokens=np.int64(5), temperature=np.float32(0), stop=["."])
    assert request.max_tokens == 5
