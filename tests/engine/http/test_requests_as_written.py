"""Requests as SDKs, browsers and generated clients write them: over a socket, on every route."""

from typing import get_type_hints

import pytest
from helpers.http_media import data_url, file_of, wav_of
from helpers.omni_media import photograph, recording
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from vllm_dynin.entrypoints.http import chat, edits, images, speech, text_routes, transcriptions
from vllm_dynin.entrypoints.http.fields import ROUTES

IMAGE = data_url(file_of(photograph()).getvalue(), "image/png")
DRAW = {"prompt": "a cat", "num_inference_steps": 2, "seed": 3}
SHORT = {"seed": 4, "max_tokens": 48, "num_inference_steps": 16, "guidance_scale": 0}
SAY = {"input": "Good morning to you."} | SHORT
ASK = {"messages": [{"role": "user", "content": "a cat"}], "max_tokens": 4, "temperature": 0}
CHAT_IMAGE = {"messages": ASK["messages"], "modalities": ["image"]} | {
    name: DRAW[name] for name in ("num_inference_steps", "seed")
}
CHAT_SOUND = {
    "messages": [{"role": "user", "content": SAY["input"]}],
    "modalities": ["audio"],
} | SHORT
JSON = {
    "generations": ("/v1/images/generations", DRAW, images.GenerationBody),
    "speech": ("/v1/audio/speech", SAY, speech.SpeechBody),
    "chat": ("/v1/chat/completions", ASK, chat.ChatBody),
    "chat image": ("/v1/chat/completions", CHAT_IMAGE, chat.ChatBody),
    "greedy chat image": ("/v1/chat/completions", CHAT_IMAGE | {"temperature": 0}, chat.ChatBody),
    "chat sound": ("/v1/chat/completions", CHAT_SOUND, chat.ChatBody),
    "completions": (
        "/v1/completions",
        {"prompt": "a cat", "max_tokens": 4, "temperature": 0},
        text_routes.CompletionBody,
    ),
    "responses": (
        "/v1/responses",
        {"input": "a cat", "max_output_tokens": 4, "temperature": 0},
        text_routes.ResponsesBody,
    ),
    "tokenize": ("/tokenize", {"prompt": "a cat"}, None),
    "tokenize chat": ("/tokenize", {"messages": ASK["messages"]}, None),
    "detokenize": ("/detokenize", {"tokens": [5, 6]}, None),
}
PUBLISHED = {
    "/v1/completions": get_type_hints(CompletionCreateParamsNonStreaming).keys(),
    "/v1/responses": get_type_hints(ResponseCreateParamsNonStreaming).keys(),
}
"""Fields of OpenAI's types; those of the other routes are in ROUTES."""
MORE = {"tokenize": ("add_special_tokens", "return_token_strs", "model")}
FORMS = {
    "edits": ("/v1/images/edits", DRAW, edits.EditForm, "image"),
    "transcriptions": (
        "/v1/audio/transcriptions",
        {"max_completion_tokens": "4"},
        transcriptions.TranscriptionForm,
        "file",
    ),
}


def files_for(name):
    return {"image": file_of(photograph())} if name == "image" else {"file": wav_of(*recording())}


def content_of(answer):
    """What an answer says, without what differs from one to the next."""
    assert answer.status_code == 200, answer.text
    if "json" not in answer.headers["content-type"]:
        return answer.content
    body = answer.json()
    for name in ("data", "output", "text", "tokens", "prompt"):
        if name in body:
            found = body[name]
            return [part["content"] for part in found] if name == "output" else found
    message = body["choices"][0].get("message", body["choices"][0])
    sound = message.get("audio") or {}
    return message.get("content"), message.get("images"), message.get("text"), sound.get("data")


@pytest.mark.parametrize("name", JSON)
def test_null_is_not_said(routes, name):
    route, body, model = JSON[name]
    known = {*(model.model_fields if model else MORE.get(name, ())), "unheard_of", "style"}
    for rules in (rules for key, rules in ROUTES.items() if key.startswith(route)):
        known |= rules.keys()
    known |= PUBLISHED.get(route, set())
    unsaid = dict.fromkeys(known - body.keys())
    with routes.client() as http:
        plain = content_of(http.post(route, json=body))
        answer = http.post(route, json=body | unsaid)
        assert content_of(answer) == plain
        assert "x-dynin-ignored" not in answer.headers
        for field in sorted(unsaid) if name in ("completions", "responses", "chat") else ():
            assert http.post(route, json=body | {field: None}).status_code == 200, field


@pytest.mark.parametrize("blank", ["", " ", "null"])
@pytest.mark.parametrize("name", FORMS)
def test_blank_is_not_said(routes, name, blank):
    route, form, model, upload = FORMS[name]
    fields = {field.alias or key for key, field in model.model_fields.items()}
    fields |= {*ROUTES[route], "user", "safety_identifier"} - {"image", "prompt", "file"}
    unsaid = dict.fromkeys(fields - form.keys() - {"image[]", upload}, blank)
    with routes.client() as http:
        plain = content_of(http.post(route, data=form, files=files_for(upload)))
        answer = http.post(route, data=form | unsaid, files=files_for(upload))
        assert content_of(answer) == plain


def test_a_file_field_nobody_chose_a_file_for(routes):
    """What a browser sends for `<input type="file" name="mask">` left alone."""
    with routes.client() as http:
        upload = file_of(photograph()).getvalue()
        parts = {"image": upload, "mask": b""}
        boundary = "xyz"
        body = b""
        for name, data in parts.items():
            filename = "image.png" if data else ""
            body += (
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
                f'filename="{filename}"\r\nContent-Type: application/octet-stream\r\n\r\n'
            ).encode()
            body += data + b"\r\n"
        for name, value in DRAW.items():
            body += (
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            ).encode()
        body += f"--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = http.post("/v1/images/edits", content=body, headers=headers)
        assert content_of(answer) == content_of(
            http.post("/v1/images/edits", data=DRAW, files={"image": upload})
        )


RESPONSE_TEXT = {"type": "input_text", "text": "a cat", "annotations": None}
# Route, what is added to a good request, and what the header names.
ACCEPTED = {
    "moderation": ("generations", {"moderation": "auto", "user": "me"}, None),
    "background": ("generations", {"background": "opaque", "safety_identifier": "x"}, None),
    "no partial images": ("generations", {"stream": False, "partial_images": 0}, None),
    "defaults": (
        "generations",
        {"n": 1, "quality": "auto", "size": "auto", "output_compression": 100},
        None,
    ),
    "complexity": ("generations", {"complexity": "high"}, "complexity"),
    "instructions": ("speech", {"instructions": "", "speed": 1, "voice": {"id": "alloy"}}, None),
    "chat defaults": (
        "chat",
        {"tools": [], "tool_choice": "auto", "functions": [], "function_call": "none"}
        | {"logit_bias": {}, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
        | {"response_format": {"type": "text"}, "verbosity": "medium", "store": False}
        | {"stream_options": {"include_usage": True}, "modalities": ["text"], "metadata": {}},
        None,
    ),
    "nested nulls": (
        "chat",
        {
            "messages": [
                {
                    **{"role": "user", "name": None, "tool_calls": None, "audio": None},
                    "content": [{"type": "text", "text": "a cat", "image_url": None}],
                }
            ],
            "stream_options": {"include_usage": None, "include_obfuscation": None},
            "response_format": {"type": "text", "json_schema": None},
            "tools": [
                {"type": "function", "function": {"name": "f", "description": None, "strict": None}}
            ],
            "tool_choice": "none",
        },
        None,
    ),
    "draws at temperature 0": ("chat", {"top_p": 0.5, "top_k": 5, "min_p": 0.1}, None),
    "draws of completions": ("completions", {"top_p": 0.5, "top_k": 5, "min_p": 0.1}, None),
    "draws of responses": ("responses", {"top_p": 0.5, "top_k": 5}, None),
    "draws of an image": (
        "greedy chat image",
        {"top_p": 0.5, "top_k": 5, "min_p": 0.1},
        None,
    ),
    "completion defaults": (
        "completions",
        {"best_of": 1, "echo": False, "frequency_penalty": 0, "presence_penalty": 0, "n": 1}
        | {"logit_bias": {}, "stop": [], "stream": False, "suffix": "", "top_p": 1, "user": ""}
        | {"stream_options": {"include_usage": True}},
        None,
    ),
    "response defaults": (
        "responses",
        {"background": False, "include": [], "metadata": {}, "parallel_tool_calls": True}
        | {"service_tier": "auto", "store": True, "stream": False, "truncation": "disabled"}
        | {"text": {"format": {"type": "text"}, "verbosity": None}, "tools": [], "top_p": 1}
        | {"tool_choice": "auto", "top_logprobs": 0, "user": "", "instructions": ""}
        | {"reasoning": {"effort": None, "summary": None}, "stream_options": None}
        | {"input": [{"role": "user", "id": None, "content": [RESPONSE_TEXT]}]},
        None,
    ),
    "chat hints": (
        "chat",
        {"verbosity": "low", "store": True, "height": 64, "prompt_cache_key": "x"},
        "verbosity, store, height",
    ),
    "image defaults": (
        "chat image",
        {"tools": [], "tool_choice": "none", "stop": [], "logprobs": False, "top_logprobs": 0}
        | {"parallel_tool_calls": True, "response_format": {"type": "text"}, "size": "auto"}
        | {"partial_images": 0, "service_tier": "auto", "metadata": {"a": "b"}, "top_p": 1.0},
        None,
    ),
    "sound defaults": ("chat sound", {"size": "auto", "quality": "auto", "n": 1}, None),
    "a voice by id": (
        "chat sound",
        {"audio": {"voice": {"id": "alloy"}, "format": "wav"}, "verbosity": "high"},
        "verbosity",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(routes, name):
    route, body, _ = JSON[ACCEPTED[name][0]]
    _, more, ignored = ACCEPTED[name]
    with routes.client() as http:
        answer = http.post(route, json=body | more)
        assert content_of(answer) == content_of(http.post(route, json=body))
        assert answer.headers.get("x-dynin-ignored") == ignored


@pytest.mark.parametrize(
    ("name", "more", "ignored"),
    [
        ("edits", {"moderation": "low", "user": "me", "input_fidelity": "low"}, None),
        ("edits", {"input_fidelity": "high"}, "input_fidelity"),
        ("transcriptions", {"prompt": "a hint", "language": "en-GB"}, "prompt"),
        ("transcriptions", {"keywords[]": ["a", "b"], "languages[]": ["en", "EN"]}, "keywords[]"),
        ("transcriptions", {"languages": "auto", "chunking_strategy": "auto"}, None),
    ],
)
def test_accepted_in_forms(routes, name, more, ignored):
    route, form, _, upload = FORMS[name]
    with routes.client() as http:
        answer = http.post(route, data=form | more, files=files_for(upload))
        plain = http.post(route, data=form, files=files_for(upload))
        assert content_of(answer) == content_of(plain)
        assert answer.headers.get("x-dynin-ignored") == ignored


def test_a_streamed_answer_says_so_too(routes):
    with (
        routes.client() as http,
        http.stream(
            "POST", "/v1/chat/completions", json=ASK | {"stream": True, "store": True}
        ) as a,
    ):
        assert a.headers["x-dynin-ignored"] == "store"


@pytest.mark.parametrize("size", ["1024x1024", "2048X2048", "1536x16", "640×16", "101x101", "16x5"])
def test_sizes_that_do_not_fit(routes, size):
    """Each route lists sizes, and those work."""
    part = {"type": "image_url", "image_url": {"url": IMAGE}}
    text = {"type": "text", "text": "make it night"}
    edit = CHAT_IMAGE | {"size": size, "messages": [{"role": "user", "content": [part, text]}]}
    both = edit | {"modalities": ["text", "image"]}
    form = DRAW | {"size": size}
    mask = {"mask": file_of(photograph().convert("L"))}
    with routes.client() as http:

        def edits(form, files=()):
            return http.post("/v1/images/edits", data=form, files=files_for("image") | dict(files))

        answers = {
            "generations": http.post("/v1/images/generations", json=DRAW | {"size": size}),
            "edits": edits(form),
            "inpaint": edits(form, mask),
            "edit with mask": edits(form | {"vllm_xargs": '{"dynin_task": "i2i"}'}, mask),
            "chat": http.post("/v1/chat/completions", json=CHAT_IMAGE | {"size": size}),
            "chat edit": http.post("/v1/chat/completions", json=edit),
            "chat both": http.post("/v1/chat/completions", json=both),
            "stream": http.post(
                "/v1/images/generations", json=DRAW | {"size": size, "stream": True}
            ),
        }
        is_thin = size in ("1536x16", "640×16")  # few codes: they may fit
        for name, answer in answers.items():
            if is_thin and answer.status_code == 200:
                continue
            assert answer.status_code == 400, (name, answer.text[:300])
            message = answer.json()["error"]["message"]
            assert "sizes that fit are" in message, (name, message)
        if size != "1024x1024":
            return
        listed = {name: answer.json()["error"]["message"] for name, answer in answers.items()}
        largest = {
            name: text.split("sizes that fit are ")[1].split(" and others")[0].split(", ")[-1]
            for name, text in listed.items()
        }
        assert http.post(
            "/v1/images/generations", json=DRAW | {"size": largest["generations"]}
        ).is_success
        assert edits(form | {"size": largest["edits"]}).is_success
        assert http.post(
            "/v1/chat/completions", json=both | {"size": largest["chat both"]}
        ).is_success
