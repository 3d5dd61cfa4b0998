"""The pages on serving name what the routes take, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

import vllm_dynin
from vllm_dynin.canvas import Task
from vllm_dynin.defaults import FAMILY_DEFAULTS
from vllm_dynin.entrypoints.http import (
    chat,
    edits,
    fields,
    migration,
    options,
    speech,
    transcriptions,
)
from vllm_dynin.entrypoints.http.voices import VOICES

DOCS = Path(vllm_dynin.__file__).parents[1] / "docs"
SERVING, MIGRATION = ((DOCS / f"{name}.md").read_text() for name in ("serving", "migration"))


def quoted(page: str) -> set[str]:
    """Words of code spans."""
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return set(re.findall(r"[\w|<>-]+", " ".join(re.findall(r"`([^`]+)`", page))))


def section(page: str, title: str) -> str:
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_field_is_named() -> None:
    own = {
        "Images": edits.EditForm,
        "Speech": speech.SpeechBody,
        "Transcriptions": transcriptions.TranscriptionForm,
    }
    # Said in other words, the same everywhere, or shown in an example.
    elsewhere = {"model", "user", "safety_identifier", "background", "input", "file", "images"}
    elsewhere |= {"vllm_xargs", "chunking_strategy", "instruction", "timestamp_granularities"}
    elsewhere |= {"seed", "max_completion_tokens", "response_format", "prompt"}
    for title, body in own.items():
        missing = set(body.model_fields) - elsewhere - quoted(section(SERVING, title))
        assert not missing, (title, missing)
    honoured = {n for n, rule in fields.CHAT_MEDIA.items() if rule.decision == "honoured"}
    media = (honoured | chat._OURS) - {"model", "vllm_xargs", "max_tokens", "stream_options"}
    media -= {"messages", "additional_information", "temperature"}
    assert media <= quoted(section(SERVING, "Chat that answers in media"))


def test_voices_and_qualities() -> None:
    speech_page = section(SERVING, "Speech")
    assert set(VOICES) <= quoted(speech_page)
    for cell, style in re.findall(r"\| ((?:`\w+`(?:, )?)+) \| ([\w, ]+?) (?=\|)", speech_page):
        for voice in re.findall(r"\w+", cell):
            parts = {"female": "gender", "male": "gender", "high": "pitch", "low": "pitch"}
            for word in style.split(", "):
                assert getattr(VOICES[voice], parts.get(word, "speed")) == word, voice
    assert set(options.QUALITIES) <= quoted(section(SERVING, "Images"))
    steps = {FAMILY_DEFAULTS[task].steps for task in (Task("t2i"), Task("i2i"))}
    assert steps == {16, 128}  # as the page says


def test_migration_names_every_key() -> None:
    names = quoted(section(MIGRATION, "Accepted in `/v1/chat/completions`"))
    assert names >= migration._KNOWN
    assert set(migration._TASKS) <= names
    assert set(migration.TRIGGERS) <= {name.replace("\\", "") for name in names} | {
        token.replace("\\", "") for token in re.findall(r"`([^`]+)`", MIGRATION)
    }
