"""Two hundred videos, each made another way, on every way in: judged by what is seen in them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from helpers.server import Server
from helpers.video_files import still
from helpers.video_variety import FILMS, MOVING, STILL, TOO_DAMAGED, file_of
from vllm import LLM
from vllm.exceptions import VLLMValidationError

import vllm_dynin as dynin
from vllm_dynin.processors.chat import render_chat
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.sampling.params import DenoiseParams

QUESTION = "What happens in the clip?"
TOKENS = 16
SOME = tuple(MOVING)[::9]
"""A share of them for the ways that decode nothing of their own."""


def wanted(name: str) -> str:
    """What is to be answered; of a picture at rest only the digit is known."""
    film, _ = (MOVING | STILL)[name]
    return film.answer if name in MOVING else film.answer.split()[0]


def wrong(answers: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Answers that are not right, with what would be."""
    return {
        name: (answer, wanted(name))
        for name, answer in answers.items()
        if not answer.startswith(wanted(name))
    }


def url(name: str) -> str:
    """A data URL; its media type is wrong for most, as it often is."""
    return "data:video/mp4;base64," + base64.b64encode(file_of(name)).decode()


def content(name: str) -> list[dict[str, Any]]:
    """Parts of a user's message."""
    return [
        {"type": "video_url", "video_url": {"url": url(name)}},
        {"type": "text", "text": QUESTION},
    ]


def at_once(ask: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
    """Ask about many at the same time."""
    names = list(names)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))


def chat(tiny: Server, name: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content(name)}], "temperature": 0}
    body |= {"model": tiny.model, "max_tokens": TOKENS}
    return httpx.post(f"{tiny.url}/v1/chat/completions", json=body, timeout=300)


def test_there_is_variety():
    assert len(MOVING) >= 200 and len(STILL) >= 10 and len(TOO_DAMAGED) >= 12
    assert len({film.answer for film in FILMS}) == len(FILMS) >= 2
    assert len({file_of(name) for name in MOVING}) >= len(MOVING) - 2  # an encoder may agree


def test_chat(tiny):
    answers = at_once(lambda name: chat(tiny, name), MOVING | STILL)
    refused = {name: a.text for name, a in answers.items() if a.status_code != 200}
    assert not refused
    texts = {n: a.json()["choices"][0]["message"]["content"] for n, a in answers.items()}
    assert not wrong(texts)


def test_chat_refuses_what_nobody_could_read(tiny):
    answers = at_once(lambda name: chat(tiny, name), TOO_DAMAGED)
    assert {name for name, a in answers.items() if a.status_code != 400} == set()
    for name, answer in answers.items():
        assert len(answer.json()["error"]["message"]) > 20, name


def test_answers_in_speech(tiny):
    """The route of ours that takes videos: the same decoder and the same refusals."""

    def ask(name: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content(name)}], "max_tokens": TOKENS}
        body |= {"model": tiny.model, "modalities": ["text", "audio"], "temperature": 0}
        body["audio"] = {"voice": "alloy", "format": "wav"}
        return httpx.post(f"{tiny.url}/v1/chat/completions", json=body, timeout=300)

    answers = at_once(ask, [*SOME, *TOO_DAMAGED])
    for name, answer in answers.items():
        if name in TOO_DAMAGED:
            assert answer.status_code == 400, (name, answer.text)
        else:  # the model was not trained to speak of videos, and may have nothing to say
            is_silent = "without a single unit of speech" in answer.text[:200]
            assert answer.status_code == (422 if is_silent else 200), (name, answer.text[:200])


def test_a_list_of_pictures(tiny):
    """As clients of vLLM send frames that they took themselves."""
    film = FILMS[0]
    for modalities in (["text"], ["text", "audio"]):
        frames = [base64.b64encode(still(f, "JPEG")).decode() for f in film.frames()]
        for parts, status in ((frames, 200), ([*frames, "QUJD", "!"], 400)):
            video = {"url": "data:video/jpeg;base64," + ",".join(parts)}
            said = {"type": "text", "text": QUESTION}
            message = {"role": "user", "content": [{"type": "video_url", "video_url": video}, said]}
            body = {"messages": [message], "modalities": modalities, "temperature": 0}
            body |= {"model": tiny.model, "max_tokens": TOKENS}
            answer = httpx.post(f"{tiny.url}/v1/chat/completions", json=body, timeout=300)
            is_silent = "without a single unit of speech" in answer.text[:200]
            assert is_silent or answer.status_code == status, answer.text
            if status == 200 and modalities == ["text"]:
                assert film.answer in answer.text


def test_requests_in_python(tiny_llm: LLM):
    names = [*MOVING, *STILL]
    requests = [dynin.VideoToText(file_of(n), QUESTION, max_tokens=TOKENS) for n in names]
    answers = dynin.generate(tiny_llm, requests)
    assert not wrong({n: a.text for n, a in zip(names, answers, strict=True)})
    for name in TOO_DAMAGED:
        with pytest.raises(ValueError, match="request 0"):
            dynin.generate(tiny_llm, [dynin.VideoToText(file_of(name), QUESTION)])


def test_llm_chat(tiny_llm: LLM):
    params = DenoiseParams().to_sampling_params(max_tokens=TOKENS, temperature=0)
    outputs = tiny_llm.chat(
        [[{"role": "user", "content": content(n)}] for n in SOME], params, use_tqdm=False
    )
    assert not wrong({n: o.outputs[0].text for n, o in zip(SOME, outputs, strict=True)})


def test_llm_generate(tiny_llm: LLM):
    """Files as bytes beside a prompt: no route, the same decoder."""
    params = DenoiseParams().to_sampling_params(max_tokens=TOKENS, temperature=0)
    text = render_chat(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    )
    prompts = [{"prompt": text, "multi_modal_data": {"video": file_of(n)}} for n in SOME]
    outputs = tiny_llm.generate(prompts, params, use_tqdm=False)
    assert not wrong({n: o.outputs[0].text for n, o in zip(SOME, outputs, strict=True)})
    for name in ("text", "mp4 whose index was at its cut end"):
        prompt = {"prompt": text, "multi_modal_data": {"video": file_of(name)}}
        with pytest.raises((MediaError, VLLMValidationError)):
            tiny_llm.generate(prompt, params, use_tqdm=False)
