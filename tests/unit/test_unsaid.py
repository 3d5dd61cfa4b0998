"""Null in JSON bodies, wherever it stands and however the body comes."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from vllm_dynin.entrypoints.http.unsaid import NullsUnsaid, without_blanks, without_nulls


def served(parts: list[bytes], kind: bytes = b"application/json") -> tuple[bytes, dict]:
    """The body and the headers an application sees."""
    seen: dict = {}

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                seen["gone"] = True
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen["body"], seen["headers"] = body, dict(scope["headers"])

    messages = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ] or [{"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    headers = [
        (b"content-type", kind),
        (b"content-length", str(sum(map(len, parts))).encode()),
    ]
    scope = {"type": "http", "method": "POST", "headers": headers, "path": "/"}
    asyncio.run(NullsUnsaid(app)(scope, receive, None))
    return seen.get("body"), seen.get("headers", seen)


def test_nulls_are_dropped_at_every_depth():
    given = {"a": None, "b": [None, {"c": None, "d": 0}], "e": {"f": {"g": None}}, "h": ""}
    assert without_nulls(given) == {"b": [None, {"d": 0}], "e": {"f": {}}, "h": ""}


@pytest.mark.parametrize("name", ["tools", "metadata", "structured_outputs"])
def test_what_is_the_clients_own_is_kept(name):
    assert without_nulls({name: [{"default": None}]}) == {name: [{"default": None}]}


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_bodies_in_pieces(cut):
    body = json.dumps({"prompt": 'a "null" cat: nullable', "n": None, "size": None}).encode()
    seen, headers = served([body[i : i + cut] for i in range(0, len(body), cut)])
    assert json.loads(seen) == {"prompt": 'a "null" cat: nullable'}
    assert headers[b"content-length"] == str(len(seen)).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"a": nul', b"application/json"),
        (b'{"a": null', b"application/json"),
        (b"[" * 100_000 + b'{"a": null}', b"application/json"),
        (b'{"a": null}', b"multipart/form-data"),
        (b'{"a":  1.50}', b"application/json"),
        (b"\xff\xfe: null", b"application/json"),
    ],
)
def test_the_rest_is_left_as_it_is(body, kind):
    assert served([body], kind)[0] == body


def test_a_client_that_goes_away():
    assert served([])[1] == {"gone": True}


def test_blank_fields():
    given = {"a": "", "b": " \n", "c": ["", "x"], "d": [""], "e": "null", "f": 0, "g": False}
    assert without_blanks(given, {"a"}) == {"a": "", "c": ["x"], "f": 0, "g": False}


def test_white_space_that_is_meant_stays():
    given = {"stop": "\n", "bad_words": [" "], "prompt": " ", "suffix": "", "language": " "}
    expected = {"stop": "\n", "bad_words": [" "], "prompt": " "}
    assert without_blanks(given, set()) == expected
    assert without_blanks({"stop": [""]}, set()) == {"stop": [""]}  # the engine refuses it
