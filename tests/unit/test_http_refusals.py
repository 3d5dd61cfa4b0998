"""Refusals on the wire: one sentence in the shape of OpenAI's API, whoever refuses."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Annotated, Any

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, UploadFile
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from vllm_dynin.entrypoints.http import refusals
from vllm_dynin.entrypoints.http.forms import FormRoute
from vllm_dynin.entrypoints.http.images import GenerationBody
from vllm_dynin.entrypoints.http.unsaid import NullsUnsaid


class _Body(BaseModel):
    prompt: str
    n: int = 1


class _FormBody(BaseModel):
    file: UploadFile
    n: int = Field(1, le=3)


@pytest.fixture(scope="module")
def http() -> TestClient:
    """Routes as ours and vLLM's, put together in the order vLLM's server does it."""
    app = FastAPI()
    app.state.args = Namespace(log_error_stack=False)

    @app.post("/v1/json")
    async def of_json(body: _Body) -> str:
        return body.prompt

    @app.post("/v1/ours")
    async def of_ours(body: GenerationBody) -> str:
        return body.prompt

    @app.post("/v1/vllm", dependencies=[Depends(validate_json_request)])
    async def of_vllm(body: _Body) -> str:
        return body.prompt

    forms = APIRouter(route_class=FormRoute)

    @forms.post("/v1/form")
    async def of_form(form: Annotated[_FormBody, Form(media_type="multipart/form-data")]) -> int:
        return form.n

    app.include_router(forms)

    @app.post("/v1/inner")
    async def inner() -> None:
        _Body.model_validate({"prompt": 5})

    @app.get("/v1/teapot")
    async def teapot() -> None:
        raise HTTPException(418, {"odd": 1})  # type: ignore[arg-type]

    app.add_middleware(NullsUnsaid)
    refusals.attach(app)
    init_exception_handler(app)
    app.add_middleware(AuthenticationMiddleware, tokens=["right"])
    return TestClient(app, headers={"Authorization": "Bearer right"}, raise_server_exceptions=False)


JSON = {"content-type": "application/json"}
DEEP = b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"
FORM_KIND = {"content-type": f"{refusals.FORM}; boundary=x"}
FORM_OF = b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n%s\r\n--x--\r\n'
# Method, path, what is sent, status, field, start of the message.
WRONG: dict[str, tuple[str, str, dict[str, Any], int, str | None, str]] = {
    "no JSON": ("POST", "/v1/json", {"content": b"{'x", "headers": JSON}, 400, None, "the body is"),
    "a list": ("POST", "/v1/json", {"json": [1]}, 400, None, "the body is [1]; send a JSON"),
    "nothing": ("POST", "/v1/json", {"content": b"", "headers": JSON}, 400, None, "there is no bo"),
    "no field": ("POST", "/v1/json", {"json": {}}, 400, "prompt", "prompt is missing; send it"),
    "null": ("POST", "/v1/json", {"json": {"prompt": None}}, 400, "prompt", "prompt is missing"),
    "a word": (
        "POST",
        "/v1/json",
        {"json": {"prompt": "", "n": "x"}},
        400,
        "n",
        "n='x': it must b",
    ),
    "too deep": (
        *("POST", "/v1/json", {"content": b"[" * 9999, "headers": JSON}, 400, None),
        "the body is nested too deep",
    ),
    "deep, but read": (
        *("POST", "/v1/ours", {"content": DEEP, "headers": JSON}, 400, None),
        "the body is nested too deep",
    ),
    "deep, with a null": (
        *("POST", "/v1/ours", {"content": b'{"n": null, ' + DEEP[1:], "headers": JSON}, 400, None),
        "the body is nested too deep",
    ),
    "a long number": (
        *("POST", "/v1/json", {"content": b"1" * 9999, "headers": JSON}, 400, None),
        "the body cannot be read (Exceeds the limit",
    ),
    "text": (
        *("POST", "/v1/json", {"content": b"x", "headers": {"content-type": "text/plain"}}, 400),
        *(None, "the body came as text/plain, which /v1/json does not read; send JSON"),
    ),
    "text to a route of vLLM's": (
        *("POST", "/v1/vllm", {"content": b"x", "headers": {"content-type": "text/plain"}}, 400),
        *(None, "the body came as text/plain, which /v1/vllm does not read; send JSON"),
    ),
    "a form for JSON": (
        *("POST", "/v1/json", {"data": {"prompt": "x"}}, 400, None),
        "the body came as application/x-www-form-urlencoded, which /v1/json does not read",
    ),
    "JSON for a form": (
        *("POST", "/v1/form", {"json": {"file": "x"}}, 400, None),
        "the body came as application/json, which /v1/form does not read; send a form, content-typ",
    ),
    "no file": ("POST", "/v1/form", {"data": {"n": "1"}}, 400, "file", "file is missing; send it"),
    "a word for a file": (
        *("POST", "/v1/form", {"data": {"file": "x"}}, 400, "file"),
        "file='x': it must be a file, a part of the form with a file name",
    ),
    "too many": (
        *("POST", "/v1/form", {"data": {"n": "4"}, "files": {"file": b"x"}}, 400, "n"),
        "n='4': it must be less than or equal to 3; send such a value, or leave it out",
    ),
    "no boundary": (
        *("POST", "/v1/form", {"content": b"x", "headers": {"content-type": refusals.FORM}}, 400),
        *(None, "the body cannot be read (Missing boundary in multipart"),
    ),
    "a form in Latin-1": (
        *("POST", "/v1/form", {"content": FORM_OF % b"a\xff", "headers": FORM_KIND}, 400, None),
        "the form cannot be read (the field 'n' is not UTF-8); send it as multipart/form-data",
    ),
    "half a character in a form": (
        *("POST", "/v1/form", {"content": FORM_OF % b"\xed\xa0\x80", "headers": FORM_KIND}, 400),
        *(None, "the form cannot be read (the field 'n' is not UTF-8)"),
    ),
    "a list to a route without a check": (
        *("POST", "/invocations", {"json": [1]}, 400, None, "the body is no JSON object; send one"),
    ),
    "inside of a route": ("POST", "/v1/inner", {}, 400, "prompt", "prompt=5: it must be a string"),
    "no route": ("GET", "/v1/nowhere", {}, 404, None, "there is no /v1/nowhere here; routes are"),
    "no translations": (
        *("POST", "/v1/audio/translations", {}, 404, None),
        "there is no /v1/audio/translations here: the model does not translate; /v1/audio/transcri",
    ),
    "no route at all": ("GET", "/nowhere", {}, 404, None, "there is no /nowhere here; routes are "),
    "another method": (
        "GET",
        "/v1/json",
        {},
        405,
        None,
        "GET is not a method of /v1/json; use ",
    ),
    "by status": ("GET", "/v1/teapot", {}, 418, None, "{'odd': 1}"),
    "no key": (
        *("GET", "/v1/json", {"headers": {"Authorization": "Bearer wrong"}}, 401, None),
        "Unauthorized: send a key of this server",
    ),
    "half a character": (
        *("POST", "/v1/json", {"content": rb'{"prompt": "a\ud800b"}', "headers": JSON}, 400, None),
        r"prompt holds half a character (\ud800, a lone surrogate)",
    ),
    "half a character in bytes": (
        *("POST", "/v1/vllm", {"content": b'{"n": ["\xed\xa0\x80"]}', "headers": JSON}, 400, None),
        r"n.0 holds half a character (\ud800",
    ),
    "half a character in a name": (
        *("POST", "/v1/json", {"content": rb'{"\udfff": 1}', "headers": JSON}, 400, None),
        r"the name of a field holds half a character (\udfff",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_in_one_shape(http, name):
    method, path, sent, status, field, words = WRONG[name]
    answer = http.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].startswith(words), error
    assert (error["param"], error["code"]) == (field, status)
    assert "\n" not in error["message"] and "pydantic" not in error["message"]
    if status == 405:
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("text", ["🙂", "\\ud83d\\ude00", "\\\\ud800 is how it is spelled"])
def test_whole_characters_pass(http, text):
    body = f'{{"prompt": "{text}"}}'.encode()
    answer = http.post("/v1/json", content=body, headers=JSON)
    assert answer.status_code == 200 and answer.json() == json.loads(body)["prompt"]
