"""Every refusal of the package that a request can meet, and requests that meet it.

Each is sent over HTTP on every route that can meet it, and asked in Python
(`tests/engine/http/test_refusals.py`). `tests/unit/test_refusals.py` walks the sources and fails
where a raise site is neither here nor in `raise_sites.NOT_MET`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from helpers.asks import (
    FEW,
    JPEG,
    MASK,
    MP4,
    PNG,
    STEPS,
    WAV,
    Ask,
    _huge_png,
    _image,
    _silent_film,
    _speech,
    _text,
    _wav,
    _with_nan,
    asked_of,
    chat,
    edits,
    heard,
    planned,
    seen,
    text_part,
    told,
    url_part,
    with_image,
    with_options,
    with_sound,
    with_text,
    with_video,
)
from helpers.http_media import file_of
from helpers.omni_media import clip, photograph, recording
from vllm_dynin import (
    Chat,
    DenoiseParams,
    EditImage,
    FillSpeech,
    FillText,
    Gap,
    ImageToText,
    Inpaint,
    MixedAnswer,
    SpeechToSpeech,
    SpeechToText,
    TextToImage,
    TextToSpeech,
    TextToText,
)
from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.stand_in import stand_in_config
from vllm_dynin.processors.text_tokenizer import control_string
from vllm_dynin.requests import Request

V = stand_in_config().vocabulary


def spelled(*names: str) -> str:
    """Control tokens, as a text has them."""
    return "".join(control_string(name) for name in names)


@dataclass(frozen=True)
class Case:
    """Requests that meet one refusal.

    Args:
        name: for the test.
        words: of the message, as they stand in the source.
        http: by route.
        python: requests of `vllm_dynin.generate`, made when asked for.
        site: words of the raise site, where they are others than the message's.
    """

    name: str
    words: str
    http: dict[str, Ask] = field(default_factory=dict)
    python: Callable[[], Sequence[Request]] = tuple
    site: str = ""

    @property
    def at(self) -> str:
        """Words of the raise site."""
        return self.site or self.words


_SCANS = JPEG.index(b"\xff\xda") + 14


class _Pipe:
    """A stream that cannot be rewound."""

    def read(self, count: int = -1) -> bytes:
        return b""

    def seek(self, *_: int) -> int:
        raise OSError("a pipe")


CASES: list[Case] = [
    # files: images
    Case(
        "no image",
        "not a readable image",
        with_image(b"no image at all"),
        asked_of(b"no image"),
        "_unreadable(stream, error)",
    ),
    Case(
        "HEIC",
        "HEIC pictures are not read",
        with_image(b"\0\0\0\x18ftypheic" + bytes(64), few=True),
        site="_unreadable(stream, error)",
    ),
    Case(
        "a damaged image",
        "the image is damaged or unsupported",
        with_image(_huge_png(64, 64), few=True),
        asked_of(_huge_png(64, 64)),
    ),
    Case(
        "head of a JPEG",
        "nothing but the header of a JPEG came",
        with_image(JPEG[:_SCANS], few=True),
    ),
    Case("too many pixels", "over the limit ", with_image(_huge_png(60_000, 60_000), few=True)),
    Case("too thin", "over the limit ", with_image(_huge_png(20_000, 1), few=True)),
    Case(
        "an array of another kind",
        "an image array must be uint8",
        python=asked_of(np.zeros((8, 8, 3), np.float32)),  # type: ignore[arg-type]
    ),
    # files: sound
    Case("no sound", "this is not audio that can be read", with_sound(b"no sound"), heard(b"no")),
    Case("a film without sound", "the file has no audio track", with_sound(MP4), heard(MP4)),
    Case("no samples", "the audio has no samples", with_sound(_wav(0), few=True), heard(_wav(0))),
    Case(
        "head of a WAV",
        "the WAV file ends before its samples begin",
        with_sound(WAV[:36], few=True),
    ),
    Case("not finite", "is NaN or infinite", with_sound(_with_nan(), few=True), heard(_with_nan())),
    Case(
        "a low rate", " Hz is below ", with_sound(_wav(rate=10), few=True), heard((np.ones(9), 10))
    ),
    Case(
        "many channels",
        "over the limit ",
        with_sound(_wav(64, channels=99), few=True),
        heard(_wav(9, channels=99)),
    ),
    Case(
        "too short for the codec",
        "it needs",
        {
            name: ask
            for name, ask in with_sound(_wav(100)).items()
            if not name.startswith("transcriptions")
        },
        lambda: [SpeechToText(_wav(100)), SpeechToSpeech(_wav(100))],
    ),
    Case(
        "too short to fill",
        " ms long; at least ",
        python=lambda: [FillSpeech(_wav(100), "x", 0, 0.001)],
    ),
    Case("no rate", "samples need their sample_rate", python=heard(np.ones(9000, np.float32))),
    Case("a rate beside a file", "a file says its own rate", python=heard((WAV, 16_000))),
    Case("three of two", "pass (samples, sample_rate)", python=heard((1, 2, 3))),
    Case("half a hertz", "must be a whole number of Hz", python=heard((np.ones(9000), 16_000.5))),
    Case("a cube", "samples of shape ", python=heard((np.ones((2, 2, 2)), 16_000))),
    Case("words", " are not audio; use float32", python=heard((np.array(["a"] * 9000), 16_000))),
    Case(
        "silence",
        "there is nothing to be heard in the audio",
        {
            name: ask
            for name, ask in with_sound(_wav(8_000)).items()
            if not name.startswith("transcriptions")  # which write down nothing
        },
        lambda: [SpeechToText(_wav(8_000)), SpeechToSpeech(_wav(8_000))],
    ),
    # files: video
    Case("no video", "not a readable video", with_video(b"no video"), seen(b"no video")),
    Case(
        "sound only",
        "the file has no video stream",
        with_video(_silent_film()),
        seen(_silent_film()),
    ),
    Case("no frames", "the video has 0 frames", python=seen([])),
    Case("frames below one", " must be at least 1", python=seen(clip(), num_frames=0)),
    Case("too many frames", "over the limit ", python=seen(clip(), num_frames=100_000)),
    Case(
        "a bad frame in a list",
        " of the video: ",
        {
            name: chat(
                {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,*"}},
                text_part(),
                **more,
            )
            for name, more in {"chat": {}, "chat with audio": {"modalities": ["audio"]}}.items()
        },
    ),
    # files: any
    Case("nothing", "the media source is empty", python=asked_of(b"")),
    Case("no such file", "cannot open ", python=lambda: [ImageToText("/nowhere.png")]),
    Case(
        "a device",
        "is not a regular file",
        python=lambda: [ImageToText("/dev/null")],
    ),
    Case("a number", "a media source must be a path", python=lambda: [ImageToText(5)]),  # type: ignore[arg-type]
    Case("a pipe", "the file object is not seekable", python=lambda: [ImageToText(_Pipe())]),  # type: ignore[arg-type]
    Case(
        "base64 of nothing",
        "the base64 is empty",
        {
            "chat": chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}),
            "chat with image": chat(
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
                modalities=["image"],
            ),
        },
    ),
    Case(
        "base64 cut off",
        " characters, which no file has",
        {
            "chat": chat(
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAAA"}}
            ),
            "chat, sound": chat(
                {"type": "input_audio", "input_audio": {"data": "AAAAA", "format": "wav"}}
            ),
            "chat with image": chat(
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAAA"}},
                modalities=["image"],
            ),
            "chat with audio": chat(
                {"type": "input_audio", "input_audio": {"data": "AAAAA", "format": "wav"}},
                modalities=["audio"],
            ),
        },
    ),
    Case(
        "base64 with strange letters",
        " of the base64 is ",
        {
            name: chat(
                {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/x;base64,{data}"}},
                **more,
            )
            for name, kind, data, more in (
                ("chat", "image", "AA*A", {}),
                ("chat, sound", "audio", "AAäA", {}),
                ("chat with image", "image", "AA*A", {"modalities": ["image"]}),
                ("chat with audio", "audio", "AAäA", {"modalities": ["audio"]}),
            )
        },
        site="_unknown(",
    ),
    Case(
        "a data URL without base64",
        " does not say ;base64 ",
        {
            name: chat(
                {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/x,abc"}}, **more
            )
            for name, kind, more in (
                ("chat", "image", {}),
                ("chat, sound", "audio", {}),
                ("chat, video", "video", {}),
                ("chat with image", "image", {"modalities": ["image"]}),
                ("chat with audio", "audio", {"modalities": ["audio"]}),
                ("chat with audio, video", "video", {"modalities": ["audio"]}),
            )
        }
        | {
            "responses": Ask(
                "/v1/responses",
                {
                    "input": [
                        {
                            "role": "user",
                            "content": [{"type": "input_image", "image_url": "data:image/x,abc"}],
                        }
                    ]
                },
            )
        },
    ),
    Case(
        "a data URL without a comma",
        " has no comma; ",
        {
            name: chat({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, **more)
            for name, more in {"chat": {}, "chat with image": {"modalities": ["image"]}}.items()
        },
    ),
    # masks
    Case(
        "a mask of another shape",
        "the mask is ",
        {"edits": edits(PNG, mask=file_of(Image.new("L", (50, 500), 255)).getvalue())},
        lambda: [Inpaint(photograph(), Image.new("L", (50, 500), 255), "x")],
    ),
    Case(
        "an empty mask",
        "the mask marks nothing",
        {
            "edits": edits(PNG, mask=file_of(Image.new("L", photograph().size)).getvalue()),
            "edits, instructed": edits(
                PNG,
                mask=file_of(Image.new("L", photograph().size)).getvalue(),
                vllm_xargs='{"dynin_task": "i2i"}',
            ),
        },
        lambda: [
            Inpaint(photograph(), Image.new("L", photograph().size), "x"),
            EditImage(photograph(), "x", Image.new("L", photograph().size)),
        ],
    ),
    Case(
        "growing by nothing",
        "give the pixels to add",
        python=lambda: [Inpaint.outward(photograph(), "x")],
    ),
    # infilling
    Case(
        "a span outside",
        "is not inside the recording",
        python=lambda: [FillSpeech(recording(), "x", 3, 9)],
    ),
    Case(
        "a span of nothing",
        "the span needs at least one unit",
        python=lambda: [FillSpeech(recording(), "x", 0.1, 0.2, 0)],
    ),
    Case(
        "a gap of nothing",
        "a gap has at least one token",
        python=lambda: [FillText("x", (Gap(0),))],
    ),
    Case(
        "targets twice",
        "is what this request makes of its known part",
        {"edits": edits(PNG, mask=MASK, vllm_xargs='{"dynin_target_token_ids": [5]}')},
        lambda: [FillText("x", ("a", Gap(2)), options=DenoiseParams(target_token_ids=(V.mask,)))],
    ),
    # conversations
    Case(
        "a text without a visible character",
        "there is no text to speak: ",
        {
            "speech": Ask("/v1/audio/speech", {"input": " \n", "max_tokens": 8}),
            "chat with audio": chat(" \n", modalities=["audio"]),
        },
        lambda: [TextToSpeech(" \n")],
    ),
    Case(
        "a text without a letter",
        "there is no text to speak: ",
        {
            "speech": Ask("/v1/audio/speech", {"input": "🙂 …!", "max_tokens": 8}),
            "speech, streamed": Ask(
                "/v1/audio/speech", {"input": "-- ?", "max_tokens": 8, "stream": True}
            ),
            "chat with audio": chat("❤️\ufe0f", modalities=["audio"]),
        },
        lambda: [TextToSpeech("🙂"), FillSpeech(recording(), "?!", 0.1, 0.2)],
    ),
    Case(
        "a blank description",
        " has no visible character; say what the image is to show",
        {
            f"{name} {text!r}": ask
            for text in ("", " \n", "\u200b\ufeff")
            for name, ask in {
                "generations": Ask("/v1/images/generations", {"prompt": text} | STEPS),
                "edits": edits(PNG, text),
                "edits with mask": edits(PNG, text, MASK),
                "chat with image": chat(text, modalities=["image"]),
                "chat with edit": chat(
                    url_part("image", PNG, "image/png"), text_part(text), modalities=["image"]
                ),
                "chat with both": chat(
                    url_part("image", PNG, "image/png"),
                    text_part(text),
                    modalities=["text", "image"],
                ),
                "chat by task": chat(f"<|t2i|>{text}", additional_information={}),
            }.items()
        }
        | {"no text": chat(url_part("image", PNG, "image/png"), modalities=["image"])},
        lambda: [
            TextToImage(" "),
            EditImage(photograph(), ""),
            Inpaint(photograph(), Image.new("L", (8, 8), 255), "\u200b"),
            MixedAnswer(photograph(), "\n"),
        ],
    ),
    Case(
        "half a character",
        " half a character (",
        {
            name: ask
            for name, ask in with_text("a \ud800 b").items()
            if ask.files is None  # a form is UTF-8
        },
        told("a \udfff b"),
    ),
    Case("no message", "the conversation is empty", python=lambda: [Chat([])]),
    Case(
        "a part of another kind",
        "smell",
        site="message",
        python=lambda: [Chat([{"role": "user", "content": [{"type": "smell"}]}])],
    ),
    Case(
        "a medium without a source",
        "; give its source as ",
        python=lambda: [Chat([{"role": "user", "content": [{"type": "image"}]}])],
    ),
    # control tokens in a text
    Case(
        "the mask as text",
        ", which stands for what is to be generated; take it out of the text",
        with_text("fill <|mdm_mask|> in"),
        told("a <|mdm_mask|>"),
    ),
    Case(
        "places without media",
        " places for ",
        {
            name: ask
            for name, ask in with_text(f"a {spelled('soi', 'eoi')} b").items()
            if name in ("edits", "chat with edit", "chat with both")
        },
    ),
    Case(
        "a placeholder without its medium",
        "the prompt has the control tokens ",
        {
            name: ask
            for name, ask in with_text(f"a {spelled('soa', 'eoa')} b").items()
            if name
            in ("chat", "chat, streamed", "completions", "responses", "generations", "speech")
        },
    ),
    Case(
        "a placeholder without its medium, in Python",
        " placeholders, but ",
        python=told(f"a {spelled('soa', 'eoa')} b"),
    ),
    Case(
        "a text too long for its block",
        "; shorten the text by ",
        with_text("cat " * 300, only_blocks=True),
        told("cat " * 300),
    ),
    Case(
        "a task without decoder",
        "the prompt opens with the task token",
        {
            "completions": Ask("/v1/completions", {"prompt": spelled("t2v") + "x"} | FEW),
            "completions, ids": Ask("/v1/completions", {"prompt": [V.t2v, 5]} | FEW),
        },
    ),
    Case(
        "another ending",
        " but must end with ",
        {"completions": Ask("/v1/completions", {"prompt": [V.t2i, 5]} | FEW)},
    ),
    Case(
        "a task without its medium",
        "; send the input the task is about",
        {"completions": Ask("/v1/completions", {"prompt": [V.mmu, 5]} | FEW)},
    ),
    Case(
        "a medium the task does not take",
        "but the task takes ",
        {"completions": Ask("/v1/completions", {"prompt": [V.s2t, V.image.start, 5]} | FEW)},
    ),
    Case(
        "an id outside the table",
        " is outside the table",
        {
            "completions": Ask(
                "/v1/completions",
                {"prompt": [5, 6]}
                | FEW
                | {
                    "vllm_xargs": {
                        "dynin_uncond_prompt_token_ids": [10**6],
                        "dynin_guidance_scale": 1.0,
                    }
                },
            ),
        },
    ),
    Case(
        "a second prompt with the mask",
        "the prompt to guide away from has the control token ",
        {
            "completions": Ask(
                "/v1/completions",
                {
                    "prompt": "x",
                    "vllm_xargs": {
                        "dynin_uncond_prompt_token_ids": [V.mask],
                        "dynin_guidance_scale": 1.0,
                    },
                }
                | FEW,
            )
        },
    ),
    # options
    Case(
        "another task",
        " the request says ",
        with_options("text", "edits", task="mmu"),
        planned(_image, _speech, task=Task.IMAGE_TO_TEXT),
    ),
    Case(
        "an option of images",
        " is for ",
        with_options("image", resolution=64),
        planned(_text, _speech, resolution=64),
    ),
    Case(
        "an option of mixed answers",
        " is for ti2ti, not for ",
        with_options(text_tokens=4),
        planned(_text, _image, _speech, text_tokens=4),
    ),
    Case(
        "blocks of an image",
        ": an image is decoded as a whole",
        with_options("text", "speech", block_length=4),
        planned(_image, block_length=4),
    ),
    Case(
        "guided by nothing",
        " with guidance off (",
        with_options("image", "speech", uncond_prompt_token_ids=[5]),
        planned(_text, uncond_prompt_token_ids=(5,)),
    ),
    Case(
        "two lengths",
        ", whose number is the length",
        with_options("text", "image", max_duration=1.0, target_token_ids=[V.mask]),
        planned(_speech, max_duration=1.0, target_token_ids=(V.mask,)),
    ),
    Case(
        "other targets than codes",
        " ids, but an image of ",
        with_options("text", "speech", target_token_ids=[V.mask] * 3),
        planned(_image, target_token_ids=(V.mask,) * 3),
    ),
    Case(
        "a known id of another kind",
        " is not one this direction produces",
        with_options("text", "image", target_token_ids=[V.mask, V.image.start]),
        planned(_speech, target_token_ids=(V.mask, V.image.start)),
    ),
    Case(
        "no such style",
        " is not a part of a style",
        with_options("text", "image", style="bored"),
        planned(_speech, style="bored"),
        "_complaint(name",
    ),
    Case(
        "a style it has not",
        " is not in this checkpoint, ",
        with_options("text", "image", style="emotion-sad"),
    ),
    Case(
        "sides of another patch",
        ": both must be multiples of ",
        {
            "generations": Ask("/v1/images/generations", {"prompt": "x", "size": "101x101"}),
            "edits": edits(PNG, size="101x101"),
            "edits with mask": edits(PNG, mask=MASK, size="101x101"),
            "chat with image": chat("x", modalities=["image"], size="101x101"),
        },
        planned(_image, resolution=101),
    ),
    # what does not fit
    Case(
        "too wide",
        ", more than the widest canvas served",
        {
            "speech": Ask("/v1/audio/speech", {"input": "x", "max_tokens": 100_000}),
        },
        lambda: [TextToText("x", max_tokens=100_000)],
    ),
    Case(
        "too many rows",
        " rows in a step (",
        {
            "completions": Ask(
                "/v1/completions",
                {"prompt": "x", "max_tokens": 1_900, "vllm_xargs": {"dynin_guidance_scale": 1.0}},
            ),
            "chat": chat("x", max_tokens=1_900, vllm_xargs={"dynin_guidance_scale": 1.0}),
            "speech": Ask("/v1/audio/speech", {"input": "x", "max_tokens": 1_900}),
        },
        lambda: [TextToText("x", max_tokens=1_900, options=DenoiseParams(guidance_scale=1.0))],
    ),
    Case(
        "what masked diffusion cannot do",
        " cannot be honoured: ",
        {
            "chat": chat("x", top_p=0.5, temperature=1),
            "completions": Ask("/v1/completions", {"prompt": "x", "presence_penalty": 0.5} | FEW),
            "responses": Ask("/v1/responses", {"input": "x", "top_p": 0.5}),
        },
    ),
    Case(
        "a beam",
        "use_beam_search=True cannot be honoured",
        {
            "chat": chat("x", use_beam_search=True, n=2),
            "completions": Ask("/v1/completions", {"prompt": "x", "use_beam_search": True, "n": 2}),
        },
    ),
    Case(
        "a priority",
        " has no effect here, where scheduling is ",
        {
            "chat": chat("x", priority=5),
            "completions": Ask("/v1/completions", {"prompt": "x", "priority": 5}),
        },
    ),
    Case(
        "the plan itself",
        " is internal; remove it",
        {
            "completions": Ask(
                "/v1/completions", {"prompt": "x", "vllm_xargs": {"_dynin_plan": "x"}}
            )
        },
    ),
    Case(
        "two reports",
        " with dynin_report or dynin_trajectory",
        {"chat": chat("x", n=2, temperature=1, vllm_xargs={"dynin_report": True})},
    ),
    Case(
        "two rules of ending",
        " contradicts ignore_eos=True",
        {
            "chat": chat("x", ignore_eos=True, vllm_xargs={"dynin_stop_at_eos": True}),
            "completions": Ask(
                "/v1/completions",
                {"prompt": "x", "ignore_eos": True, "vllm_xargs": {"dynin_stop_at_eos": True}},
            ),
        },
    ),
]
