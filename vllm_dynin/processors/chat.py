"""Prompt strings: chat template, user turn, thinking mode, and the fixed instructions.

The chat template also places the media of a conversation. Each medium is a pair of control tokens
with nothing between them; `assemble.expand_media` puts the codes there. The result for one user
turn with media is exactly what `templates.understanding` builds from ids (a test holds them
together).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from string import Template
from typing import Any

from vllm_dynin.processors.text_tokenizer import control_string as _spell

_HEADER = f"{_spell('start_header')}%s{_spell('end_header')}\n"
USER_HEADER = _HEADER % "user"
"""Opens a user turn (`H_u`). One newline, where LLaDA's own template has two."""
ASSISTANT_HEADER = _HEADER % "assistant"
END_OF_TURN = _spell("eot")

THINK, NO_THINK = "/think", "/no_think"
"""Plain text behind the question. The paper prints a backslash; the code has always used this."""
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""Around the thinking part of an answer: ordinary text, not control tokens."""

DEFAULT_QUESTION = "Please describe this input in detail."
TRANSCRIBE_INSTRUCTIONS = (
    "Transcribe the given audio.",
    "Write down what you hear in the audio.",
    "Provide a transcript for the given speech.",
    "What does the speaker in the audio say?",
    "Convert the speech in the audio to text.",
    "Listen to the audio and write out the text.",
)
"""The original draws one at random for each request; we default to the first."""
SPEAK_INSTRUCTIONS = (
    "Generate speech for the given text.",
    "Read the given sentence aloud.",
    "Say the given words.",
    "Convert the given text into spoken audio.",
    "Speak the given text.",
    "Synthesize the text into speech.",
)
"""The original draws one at random for each request; we default to the first."""

MEDIA_PLACEHOLDERS = {
    "image": _spell("soi") + _spell("eoi"),
    # A video is wrapped in soi and eoi like an image; the model never sees sov and eov.
    "video": _spell("sov") + _spell("eov"),
    "audio": _spell("soa") + _spell("eoa"),
}
"""What stands for a medium in a prompt string until its codes are known."""


def user_turn(text: str) -> str:
    """One question, ready for the answer: user header, text, end of turn, assistant header."""
    return USER_HEADER + text + END_OF_TURN + ASSISTANT_HEADER


def benchmark_turn(question: str, *, enable_thinking: bool) -> str:
    """The form of the original's text benchmarks: the switch on a line of its own, no BOS.

    Source: `evaluation/lm/eval_dynin_omni.py` of Dynin-Omni.
    """
    return user_turn(f"{question}\n{THINK if enable_thinking else NO_THINK}\n")


def training_turn(question: str, *, enable_thinking: bool = False) -> str:
    """The form of the original's training text: a newline ends the question.

    Args:
        question: the user's text.
        enable_thinking: append ` /think`, as for reasoning data. The original trains no
            counterpart for answers without thinking.

    Source: `training/data.py` of Dynin-Omni.
    """
    return user_turn(f"{question} {THINK}\n" if enable_thinking else f"{question}\n")


_SOURCE = """\
{%- set images = ('image', 'image_url', 'input_image') -%}
{%- set videos = ('video', 'video_url') -%}
{%- set audios = ('audio', 'audio_url', 'input_audio') -%}
{%- set texts = ('text', 'input_text', 'output_text') -%}
{%- set seen = namespace(image=false, video=false, audio=false, front=-1, last_user=-1) -%}
{%- macro medium(kind) -%}
  {%- if kind in images -%}{{- '$image' -}}
  {%- elif kind in videos -%}{{- '$video' -}}
  {%- elif kind in audios -%}{{- '$audio' -}}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- set seen.last_user = loop.index0 -%}
    {%- if seen.front < 0 and not interleave_media | default(false) -%}
      {%- set seen.front = loop.index0 -%}
    {%- endif -%}
  {%- endif -%}
  {%- if message['content'] is not string and message['content'] is not none -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] in images -%}{%- set seen.image = true -%}
      {%- elif part['type'] in videos -%}{%- set seen.video = true -%}
      {%- elif part['type'] in audios -%}{%- set seen.audio = true -%}
      {%- elif part['type'] not in texts -%}
        {{- raise_exception('a content part of type ' ~ part['type'] ~ ' is not supported; '
            ~ 'use text, image, video or audio parts') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if seen.video -%}{{- '$v2t' -}}
{%- elif seen.image -%}{{- '$mmu' -}}
{%- elif seen.audio -%}{{- '$s2t' -}}
{%- endif -%}
{%- if seen.front >= 0 -%}
  {%- for part in messages[seen.front]['content'] or [] if part is mapping -%}
    {{- medium(part['type']) -}}
  {%- endfor -%}
{%- endif -%}
{%- if seen.video or seen.image or not seen.audio -%}{{- '$bos' -}}{%- endif -%}
{%- for message in messages -%}
  {%- set is_front = loop.index0 == seen.front -%}
  {%- set body -%}
    {%- if message['content'] is string -%}{{- message['content'] -}}
    {%- else -%}
      {%- for part in message['content'] or [] -%}
        {%- if part['type'] in texts -%}{{- part['text'] -}}
        {%- elif not is_front -%}{{- medium(part['type']) -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
  {%- endset -%}
  {{- '$open' ~ message['role'] ~ '$close\n' ~ body | trim -}}
  {%- if enable_thinking is defined and enable_thinking is not none
      and loop.index0 == seen.last_user -%}
    {{- '\n$think\n' if enable_thinking else '\n$no_think\n' -}}
  {%- endif -%}
  {{- '$eot' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '$open' ~ 'assistant$close\n' -}}{%- endif -%}
"""

CHAT_TEMPLATE = Template(_SOURCE).substitute(
    MEDIA_PLACEHOLDERS,
    **{name: _spell(name) for name in ("bos", "eot", "mmu", "v2t", "s2t")},
    open=_spell("start_header"),
    close=_spell("end_header"),
    think=THINK,
    no_think=NO_THINK,
)
"""Jinja chat template of the family, to be stored with a tokenizer.

Each message becomes header, trimmed content and end of turn; BOS stands once, in front. Content is
a string or a list of parts. Media of the first user message go to the front of the sequence, behind
the task token, which is how the model was trained; media of later messages stand in their turn, and
with `interleave_media=true` all of them do. The task token follows from the media: video before
image before audio. Speech alone has no BOS, as in the original.

`chat_template_kwargs`: `enable_thinking` (true or false appends the switch to the last user
message, in the form of the benchmarks; left out, nothing is appended) and `interleave_media`.

Source: `validation/generate.py:main`, `mmu_mult_prompt` and `s2s_gen_prompt` of Dynin-Omni.
"""


@cache
def _compiled() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(CHAT_TEMPLATE)


def _refuse(message: str) -> None:
    raise ValueError(message)


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    enable_thinking: bool | None = None,
    interleave_media: bool = False,
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation with `CHAT_TEMPLATE`, as a server would.

    Args:
        messages: `{"role": …, "content": text or parts}`; a part is `{"type": "text", "text": …}`
            or names a medium by its `type`.
        enable_thinking: True asks for a thinking part, False for none, None says nothing.
        interleave_media: keep media of the first user message where they stand.
        add_generation_prompt: end with the assistant header.

    Raises:
        ValueError: there is no message, or a part has an unknown type.
    """
    if not messages:
        raise ValueError("the conversation is empty; give at least one message")
    rendered: str = _compiled().render(
        messages=messages,
        enable_thinking=enable_thinking,
        interleave_media=interleave_media,
        add_generation_prompt=add_generation_prompt,
    )
    return rendered
