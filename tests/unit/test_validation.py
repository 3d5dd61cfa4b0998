"""One sentence for what pydantic finds: the field, its value, the rule and a way out."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from pydantic import ValidationError

from vllm_dynin.entrypoints.http import validation
from vllm_dynin.entrypoints.http.chat import ChatBody
from vllm_dynin.entrypoints.http.images import GenerationBody
from vllm_dynin.entrypoints.http.speech import SpeechBody
from vllm_dynin.entrypoints.http.text_routes import CompletionBody, ResponsesBody

DRAW: dict[str, Any] = {"prompt": "x"}
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
SAY: dict[str, Any] = {"input": "x"}


def found(model: type, body: Any) -> validation.Found:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return validation.found(errors, body, model)


NAN, HUGE = json.loads("[NaN, 1e400]")
WRONG = [
    (GenerationBody, {}, "prompt is missing; send it", "prompt"),
    (GenerationBody, {"prompt": None}, "prompt is missing; send it", "prompt"),
    (
        GenerationBody,
        {"prompt": 5},
        "prompt=5: it must be a string; send such a value",
        "prompt",
    ),
    (
        GenerationBody,
        DRAW | {"n": 11},
        "n=11: it must be less than or equal to 10; send such a value, or leave it out",
        "n",
    ),
    (
        GenerationBody,
        DRAW | {"temperature": NAN},
        "temperature=nan: it must be a finite number; send such a value, or leave it out",
        "temperature",
    ),
    (
        GenerationBody,
        DRAW | {"temperature": HUGE},
        "temperature=inf: it must be a finite number; send such a value, or leave it out",
        "temperature",
    ),
    (
        GenerationBody,
        DRAW | {"temperature": "nan"},
        "temperature='nan': it must be a finite number; send such a value, or leave it out",
        "temperature",
    ),
    (
        GenerationBody,
        DRAW | {"response_format": "diarized_json"},
        "response_format='diarized_json': it must be 'b64_json' or 'url'; send such a value, or "
        "leave it out",
        "response_format",
    ),
    (
        GenerationBody,
        DRAW | {"n": list(range(1000))},
        "n=a list of 1000 items: it must be an integer; send such a value, or leave it out",
        "n",
    ),
    (
        SpeechBody,
        SAY | {"voice": 5},
        "voice=5: it must be a string or an object; send such a value, or leave it out",
        "voice",
    ),
    (SpeechBody, SAY | {"voice": {}}, "voice.id is missing; send it", "voice.id"),
    (
        CompletionBody,
        {"prompt": [None]},
        "prompt.0=null: it must be an integer or a list or a string; send such a value",
        "prompt.0",
    ),
    (
        CompletionBody,
        {"prompt": "x", "stop": 5},
        "stop=5: it must be a string or a list; send such a value, or leave it out",
        "stop",
    ),
    (
        ChatBody,
        {"messages": [[]]},
        "messages.0=[]: it must be an object; send such a value",
        "messages.0",
    ),
    (
        ChatBody,
        TALK | {"vllm_xargs": {"dynin_steps": {}}},
        "vllm_xargs.dynin_steps={}: it must be a string or an integer or a number",
        "vllm_xargs.dynin_steps",
    ),
    (
        ChatBody,
        TALK | {"modalities": ["smell"]},
        "modalities.0='smell': it must be 'text', 'image' or 'audio'; send such a value",
        "modalities.0",
    ),
    (
        ResponsesBody,
        {"input": "x", "stream": "maybe"},
        "stream='maybe': it must be true or false; send such a value, or leave it out",
        "stream",
    ),
    (
        ResponsesBody,
        {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "input.0.content.0.type='input_audio': it must be 'input_text' or 'input_image'",
        "input.0.content.0.type",
    ),
    (
        ResponsesBody,
        {"input": "x", "tool_choice": "x"},
        "tool_choice='x': it must be 'none', 'auto' or 'required'",
        "tool_choice",
    ),
    (
        ResponsesBody,
        {"input": "x", "text": {"format": {"type": "xml"}}},
        "text.format.type='xml': it must be 'text' or 'json_schema' or 'json_object'",
        "text.format.type",
    ),
    (
        CompletionBody,
        {"prompt": [-1]},
        "prompt.0=-1: it must be greater than or equal to 0; send such a value",
        "prompt.0",
    ),
    (
        ChatBody,
        TALK | {"audio": {"voice": "alloy", "format": "wav", "pitch": 1}},
        "audio.pitch=1: it is not a field of this route; leave it out",
        "audio.pitch",
    ),
    (ResponsesBody, [1], "the body is [1]; send a JSON object with the fields of this route", None),
    (GenerationBody, None, "there is no body; send a JSON object", None),
    (GenerationBody, "x" * 999, f"the body is {'x' * 60!r}; send a JSON object", None),
]


@pytest.mark.parametrize(
    ("model", "body", "sentence", "field"), WRONG, ids=[row[2][:40] for row in WRONG]
)
def test_sentences(model, body, sentence, field):
    said = found(model, body)
    assert said.sentence.startswith(sentence), said
    assert said.field == field
    assert "\n" not in said.sentence and "{'" not in said.sentence


def test_our_own_sentences_are_kept():
    said = found(GenerationBody, DRAW | {"style": "vivid"})
    assert said.sentence.startswith("style='vivid': images have no setting for it")


def test_no_json():
    error = {
        "type": "json_invalid",
        "loc": ("body", 5),
        "msg": "JSON decode error",
        "ctx": {"error": "Expecting value"},
    }
    said = validation.found([error], "{'x'")
    assert said == (
        "the body is no JSON (Expecting value at character 5); send a JSON object",
        None,
    )
