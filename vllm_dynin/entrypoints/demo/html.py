"""The report of the demonstration: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from vllm_dynin.codec_runner import Sound
from vllm_dynin.entrypoints.demo.media_part import MediaResults
from vllm_dynin.entrypoints.demo.text_part import TextResults
from vllm_dynin.trajectory import write_gif

_TEMPLATE = "report.html.j2"


def write_report(path: Path, text: TextResults | None, media: MediaResults | None) -> None:
    """Write the report.

    Args:
        path: of the file.
        text: part 1; None where it was left out.
        media: part 2; None where it was left out.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("vllm_dynin.entrypoints.demo", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(medium=_medium, printable=_printable)
    page = environment.get_template(_TEMPLATE).render(
        text=text,
        media=media,
        versions={name: version(name) for name in ("vllm-dynin", "torch")} | _vllm_version(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.write_text(page, encoding="utf-8")


def _vllm_version() -> dict[str, str]:
    import vllm

    return {"vllm": vllm.__version__}


def _printable(text: str) -> str:
    """Text with what cannot be seen made visible: random weights answer with control characters."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def _medium(value: object) -> dict[str, str]:
    """Kind and data URI of an image, frames or sound; text as it is."""
    if isinstance(value, str):
        return {"kind": "text", "text": _printable(value)}
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return {"kind": "image", "uri": _uri("image/png", buffer.getvalue())}
    if isinstance(value, list):
        buffer = io.BytesIO()
        write_gif(value, buffer)
        return {"kind": "image", "uri": _uri("image/gif", buffer.getvalue())}
    assert isinstance(value, Sound)
    if not len(value.waveform):
        return {"kind": "text", "text": "(nothing was said)"}
    label = f"{value.seconds:.1f} s"
    return {"kind": "sound", "uri": _uri("audio/wav", value.to_bytes("wav")), "text": label}


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
