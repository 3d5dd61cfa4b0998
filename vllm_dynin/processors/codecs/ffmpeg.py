"""Opening files with FFmpeg (through PyAV), in the one way that is safe here. For workers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

_NONE: Mapping[str, str] = {}


def open_container(stream: BinaryIO, formats: str, options: Mapping[str, str] = _NONE) -> Any:
    """PyAV's input container of a file.

    Args:
        stream: the file; read from its start.
        formats: demuxers that may read it, with commas between them. FFmpeg also knows playlists
            (HLS, concat) that open other files.
        options: of FFmpeg.

    Raises:
        av.error.FFmpegError: not a file of one of these formats.
    """
    import av  # here, so that a server which starts workers never loads FFmpeg itself

    stream.seek(0)
    # Titles in Latin-1 are common in old files. PyAV 19 replaces what it cannot read by itself;
    # before, it raised UnicodeDecodeError unless told.
    is_told = int(av.__version__.split(".")[0]) < 19
    keywords: dict[str, Any] = {"metadata_errors": "replace"} if is_told else {}
    limited = {**options, "format_whitelist": formats, "protocol_whitelist": ""}
    return av.open(stream, mode="r", options=limited, **keywords)
