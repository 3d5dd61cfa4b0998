"""The rules of fields: against OpenAI's published types, the routes' bodies, and the page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from fastapi.responses import Response
from openai.types import image_edit_params, image_generate_params
from openai.types.audio import speech_create_params, transcription_create_params
from openai.types.chat import completion_create_params

import vllm_dynin
from vllm_dynin.entrypoints.http import chat, edits, fields, images, options, speech, transcriptions

ROOT = Path(vllm_dynin.__file__).parents[1]


def published(*types: Any) -> set[str]:
    return {name for params in types for name in get_type_hints(params)}


OPENAI = {
    "generations": (
        fields.GENERATIONS,
        published(
            image_generate_params.ImageGenerateParamsNonStreaming,
            image_generate_params.ImageGenerateParamsStreaming,
        ),
        images.GenerationBody,
    ),
    "edits": (
        fields.EDITS,
        published(
            image_edit_params.ImageEditParamsNonStreaming,
            image_edit_params.ImageEditParamsStreaming,
        ),
        edits.EditForm,
    ),
    "speech": (
        fields.SPEECH,
        published(speech_create_params.SpeechCreateParams),
        speech.SpeechBody,
    ),
    "transcriptions": (
        fields.TRANSCRIPTIONS,
        published(
            transcription_create_params.TranscriptionCreateParamsNonStreaming,
            transcription_create_params.TranscriptionCreateParamsStreaming,
        ),
        transcriptions.TranscriptionForm,
    ),
    "chat in text": (fields.CHAT_TEXT, None, chat.ChatBody),
    "chat in media": (fields.CHAT_MEDIA, None, chat.ChatBody),
}
CHAT = published(
    completion_create_params.CompletionCreateParamsNonStreaming,
    completion_create_params.CompletionCreateParamsStreaming,
)
EXTRA = {"edits": {"moderation"}}  # of generations, and sent with edits all the same


@pytest.mark.parametrize("name", OPENAI)
def test_every_published_field_has_a_rule(name):
    rules, expected, _ = OPENAI[name]
    assert rules.keys() == (expected or CHAT) | EXTRA.get(name, set())


@pytest.mark.parametrize("name", OPENAI)
def test_what_is_honoured_is_in_the_body(name):
    rules, expected, body = OPENAI[name]
    known = set(body.model_fields)
    for field, rule in rules.items():
        if rule.decision == "honoured":
            assert field in known, field
        elif expected is not None:
            assert field not in known, field
        if rule.decision != "honoured":
            assert rule.why, field


def test_the_page_shows_them():
    script = ROOT / "packaging" / "fields_table.py"
    assert subprocess.run([sys.executable, script, "--check"], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("body", "given", "ignored"),
    [
        (images.GenerationBody, {"prompt": "x", "moderation": "low", "user": "me"}, ()),
        (images.GenerationBody, {"prompt": "x", "complexity": "high"}, ("complexity",)),
        (images.GenerationBody, {"prompt": "x", "unheard_of": None, "style": None}, ()),
        (images.GenerationBody, {"prompt": "x", "output_compression": 100}, ()),
        (edits.EditForm, {"prompt": "x", "input_fidelity": "low"}, ()),
        (edits.EditForm, {"prompt": "x", "input_fidelity": "high"}, ("input_fidelity",)),
        (edits.EditForm, {"prompt": "x", "mask": "", "size": "", "n": " "}, ()),
        (speech.SpeechBody, {"input": "x", "instructions": "", "voice": {"id": "alloy"}}, ()),
    ],
)
def test_bodies(body, given, ignored):
    found = body.model_validate(given)
    assert found.ignored == ignored


@pytest.mark.parametrize(
    ("body", "given", "words"),
    [
        (
            images.GenerationBody,
            {"prompt": "x", "moderation": "off"},
            ("'off'", "'low'"),
        ),
        (images.GenerationBody, {"prompt": "x", "svg": {"model": "y"}}, ("svg", "leave it out")),
        (images.GenerationBody, {"prompt": "x", "height": 64}, ("'height' is not supported",)),
        (images.GenerationBody, {"prompt": None}, ("prompt",)),
        (edits.EditForm, {"prompt": "x", "markup": "y"}, ("markup", "mask")),
        (speech.SpeechBody, {"input": "", "voice": "alloy"}, ("input",)),
    ],
)
def test_refused_bodies(body, given, words):
    with pytest.raises(ValueError) as error:
        body.model_validate(given)
    for word in words:
        assert word in str(error.value)


def test_every_field_may_be_null():
    """As an SDK writes it that knows every field and was told none."""
    for name, (rules, _, body) in OPENAI.items():
        required = {n: "x" for n, field in body.model_fields.items() if field.is_required()}
        if "messages" in required:
            required["messages"] = [{"role": "user", "content": "x"}]
        if "file" in required:
            continue  # a form: blank fields are tried over HTTP
        unsaid = dict.fromkeys({*rules, *body.model_fields, "unheard_of"} - required.keys())
        plain, full = body.model_validate(required), body.model_validate(required | unsaid)
        drawn = {"request_id"}
        assert full.model_dump(exclude=drawn) == plain.model_dump(exclude=drawn), name
        assert full.ignored == () == plain.ignored


@pytest.mark.parametrize(
    ("language", "is_right"),
    [
        *((word, True) for word in ("en", "EN", "en-US", "en_US", "en-GB", "en-Latn-US")),
        *((word, True) for word in ("English", "eng", "auto", " en ", "English (US)")),
        *((word, True) for word in ("British English", "en_US.UTF-8", "Auto")),
        *((word, False) for word in ("zh", "de", "ende", "es-EN", "ko", "entish", "enm", "e")),
    ],
)
def test_languages(language, is_right):
    assert transcriptions.is_english(language) is is_right


@pytest.mark.parametrize(
    ("names", "header"),
    [
        (["store", "keywords[]"], "store, keywords[]"),
        (["a\r\nSet-Cookie: x=1"], "a%0D%0ASet-Cookie%3A%20x%3D1"),
        (["名", "🙂", "a,b"], "%E5%90%8D, %F0%9F%99%82, a%2Cb"),
        (["a" * 10_000], "a" * 60),
        ([f"f{i}" for i in range(25)], ", ".join(f"f{i}" for i in range(20)) + ", 5 more"),
    ],
    ids=["plain", "a line break", "no Latin", "long", "many"],
)
def test_names_of_ignored_fields_fit_a_header(names, header):
    body = chat.ChatBody.model_validate({"messages": [], **dict.fromkeys(names, 1)})
    body._ignored = tuple(names)
    answer = Response()
    options.noted(answer, body)
    assert answer.headers["x-dynin-ignored"] == header
