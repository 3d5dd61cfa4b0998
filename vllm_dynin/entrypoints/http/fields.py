"""What each route does with each field of OpenAI's API. One table; docs/serving.md shows it.

`tests/unit/test_request_fields.py` compares it with the types of the `openai` package, with the
bodies of the routes, and with the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Decision = Literal["honoured", "accepted", "ignored", "refused", "engine"]

IGNORED_HEADER = "X-Dynin-Ignored"
"""Header of an answer: names of fields that were sent and had no effect on it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is done with a field.

    Args:
        decision: `honoured` reaches the model; `accepted` asks for what happens
            anyway, or for nothing that shows; `ignored` is taken and named in a header;
            `refused` is a 400; `engine` is left to vLLM, which refuses what is not the default.
        values: what is taken; None is anything. Other values are refused.
        default: values of an ignored field that ask for what happens anyway: no header for them.
        why: what happens anyway, or why the rest is refused.
    """

    decision: Decision
    values: tuple[Any, ...] | None = None
    default: tuple[Any, ...] = ()
    why: str = ""

    def is_noted(self, name: str, value: Any) -> bool:
        """Check a value.

        Args:
            name: of the field.
            value: what was sent.

        Returns:
            Whether it is to be named in the header.

        Raises:
            ValueError: it is refused.
        """
        if self.decision == "refused" or (self.values is not None and value not in self.values):
            raise ValueError(f"{name}={repr(value)[:60]}: {self.why}; {self._way_out()}")
        return self.decision == "ignored" and value not in self.default

    def _way_out(self) -> str:
        if not self.values:
            return "leave it out"
        return f"send {' or '.join(repr(value) for value in self.values)}, or leave it out"


HONOURED = Rule(decision="honoured")
_USER = Rule(decision="accepted", why="for the client's own records")
_CACHE = Rule(decision="accepted", why="nothing is kept between requests")


def _accepted(*values: Any, why: str) -> Rule:
    return Rule(decision="accepted", values=values or None, why=why)


def _ignored(why: str, *default: Any, values: tuple[Any, ...] | None = None) -> Rule:
    return Rule(decision="ignored", default=default, values=values, why=why)


def _refused(why: str, *but: Any) -> Rule:
    if but:
        return Rule(decision="accepted", values=but, why=why)
    return Rule(decision="refused", why=why)


def _engine(*default: Any, why: str) -> Rule:
    return Rule(decision="engine", values=default, why=why)


_IMAGES: dict[str, Rule] = {
    "prompt": HONOURED,
    "model": HONOURED,
    "n": HONOURED,
    "size": HONOURED,
    "quality": HONOURED,
    "response_format": HONOURED,
    "output_format": HONOURED,
    "output_compression": HONOURED,
    "stream": HONOURED,
    "partial_images": HONOURED,
    "background": _accepted("auto", "opaque", why="images have no transparency"),
    "complexity": _ignored("there is no planning in front of an image"),
    "frame_count": _refused("images do not move"),
    "frame_duration_ms": _refused("images do not move"),
    "svg": _refused("images are made of pixels"),
    "moderation": _accepted("auto", "low", why="nothing is moderated here"),
    "safety_identifier": _USER,
    "user": _USER,
}
GENERATIONS: dict[str, Rule] = {
    **_IMAGES,
    "style": _refused("images have no setting for it; say it in the prompt"),
}
EDITS: dict[str, Rule] = {
    **_IMAGES,
    "image": HONOURED,
    "mask": HONOURED,
    "input_fidelity": _ignored(
        "the model sees the whole image in any case", "low", values=("low", "high")
    ),
    "markup": _refused("the model was not trained with marks; use mask, or say it in the prompt"),
}
EDITS_JSON: dict[str, Rule] = {
    **{name: rule for name, rule in EDITS.items() if name != "image"},
    "images": HONOURED,
    "image": _refused("a body of JSON has images: [{'image_url': a URL}], a form has files"),
}
SPEECH: dict[str, Rule] = {
    "input": HONOURED,
    "model": HONOURED,
    "voice": HONOURED,
    "instructions": HONOURED,
    "response_format": HONOURED,
    "speed": HONOURED,
    "stream_format": HONOURED,
}
TRANSCRIPTIONS: dict[str, Rule] = {
    "file": HONOURED,
    "model": HONOURED,
    "language": HONOURED,
    "languages": HONOURED,
    "response_format": HONOURED,
    "temperature": HONOURED,
    "timestamp_granularities": HONOURED,
    "stream": HONOURED,
    "prompt": _ignored("a hint; the model takes no context beside the recording"),
    "keywords": _ignored("a hint; the model takes no context beside the recording"),
    "chunking_strategy": _accepted(
        "auto", why="recordings of more than 30 seconds are cut at quiet places in any case"
    ),
    "include": _refused("log-probabilities are in verbose_json, one a segment", [], [""]),
    "known_speaker_names": _refused("speakers are not told apart", []),
    "known_speaker_references": _refused("speakers are not told apart", []),
}
_ALL_COLUMNS = (
    "proposals are drawn from all columns; accepted with temperature 0, where nothing is drawn"
)
_IN_ORDER = "tokens are decided in parallel"
_TEXT_FIELDS = (
    *("messages", "model", "modalities", "n", "seed", "stop", "stream", "stream_options"),
    *("max_completion_tokens", "max_tokens", "temperature", "logprobs", "top_logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)
CHAT_TEXT: dict[str, Rule] = {
    **dict.fromkeys(_TEXT_FIELDS, HONOURED),
    "audio": _refused("it goes with audio in modalities"),
    "frequency_penalty": _engine(0, why=_IN_ORDER),
    "presence_penalty": _engine(0, why=_IN_ORDER),
    "logit_bias": _engine({}, why="the columns of a task are fixed"),
    "response_format": _engine({"type": "text"}, why="a grammar needs tokens in reading order"),
    "top_p": _engine(1, why=_ALL_COLUMNS),
    "functions": _refused("use tools", []),
    "function_call": _refused("use tool_choice", "none", "auto"),
    "metadata": _accepted(why="for the client's own records"),
    "moderation": _ignored("nothing is moderated here"),
    "prediction": _accepted(why="it would only make an answer faster"),
    "prompt_cache_key": _CACHE,
    "prompt_cache_options": _CACHE,
    "prompt_cache_retention": _CACHE,
    "reasoning_effort": _ignored(
        "thinking is on or off: chat_template_kwargs.enable_thinking", "medium"
    ),
    "safety_identifier": _USER,
    "service_tier": _accepted(why="there is one tier"),
    "store": _ignored("nothing is stored", False),
    "user": _USER,
    "verbosity": _ignored("say it in the message", "medium"),
    "web_search_options": _ignored("nothing is searched here", {}),
}
_NO_TEXT = "it is for text"
CHAT_MEDIA: dict[str, Rule] = {
    **CHAT_TEXT,
    "audio": HONOURED,
    "frequency_penalty": _refused(_IN_ORDER, 0),
    "presence_penalty": _refused(_IN_ORDER, 0),
    "logit_bias": _refused("the columns of a task are fixed", {}),
    "response_format": _refused(_NO_TEXT, {"type": "text"}),
    "top_p": _refused(_ALL_COLUMNS, 1),
    "stop": _refused(_NO_TEXT, []),
    "logprobs": _refused(_NO_TEXT, False),
    "top_logprobs": _refused(_NO_TEXT, 0),
    "tools": _refused("an image or speech calls nothing, whatever tool_choice says", []),
    "tool_choice": _refused("an image or speech calls nothing", "none", "auto"),
    "parallel_tool_calls": _accepted(True, False, why="an image or speech calls nothing"),
}
CHAT_MEDIA_GREEDY: dict[str, Rule] = {
    **CHAT_MEDIA,
    **dict.fromkeys(("top_p", "top_k", "min_p"), _accepted(why="nothing is drawn")),
}
"""For an answer with temperature 0."""
ROUTES: dict[str, Mapping[str, Rule]] = {
    "/v1/images/generations": GENERATIONS,
    "/v1/images/edits": EDITS,
    "/v1/audio/speech": SPEECH,
    "/v1/audio/transcriptions": TRANSCRIPTIONS,
    "/v1/chat/completions, answered in text": CHAT_TEXT,
    "/v1/chat/completions, answered in media": CHAT_MEDIA,
}


def apply(rules: Mapping[str, Rule], data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Go through the fields of a request.

    Args:
        rules: of its route; fields they do not name are kept.
        data: what the client said, null and blank fields left out.

    Returns:
        The fields that reach the route, and the names of those that are ignored.

    Raises:
        ValueError: a field is refused.
    """
    kept, ignored = {}, []
    for name, value in data.items():
        rule = rules.get(name.removesuffix("[]"), HONOURED)
        if rule.decision in ("honoured", "engine"):
            kept[name] = value
        elif rule.is_noted(name, value):
            ignored.append(name)
    return kept, ignored
