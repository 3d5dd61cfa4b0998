"""Decode the sound of one file with FFmpeg; run by `audio_io.load_audio` in a process of its own.

    python -m vllm_dynin.processors.codecs.audio_worker TASK < clip.m4a > samples.raw

TASK is JSON: target_rate (Hz), why libsndfile did not read the file, and what `media_worker` adds.
The output is float32 [N].
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from numpy.typing import NDArray

from vllm_dynin.processors.codecs.audio_blocks import Block, check_rate, collect, full_scale
from vllm_dynin.processors.codecs.ffmpeg import open_container
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.media_worker import serve

# Demuxers that read one file and nothing else; playlists, devices and scripts are left out.
_FORMATS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,w64,wav,webm"
)


def decode(stream: BinaryIO, task: dict[str, Any], limits: MediaLimits) -> Iterator[bytes]:
    """The samples of the first audio track, mono at `task["target_rate"]`.

    Raises:
        MediaError: no audio, damaged, or over a limit.
        MemoryError: FFmpeg could not get the memory it wanted.
    """
    import av  # here, so that a server which starts workers never loads FFmpeg itself

    try:
        yield collect(_blocks(stream, limits), task["target_rate"], limits).tobytes()
    except av.error.MemoryError as error:
        raise MemoryError from error
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(
            f"this is not audio that can be read (libsndfile: {task['reason']}; FFmpeg: "
            f"{getattr(error, 'strerror', None) or error}); send WAV, FLAC, Ogg, MP3, MP4 or WebM"
        ) from error


def _blocks(stream: BinaryIO, limits: MediaLimits) -> Iterator[Block]:
    import av

    with open_container(stream, _FORMATS) as container:
        if not container.streams.audio:
            raise MediaError("the file has no audio track")
        track = container.streams.audio[0]
        if container.duration is not None:
            seconds = container.duration / av.time_base
            limits.check("max_seconds", seconds, "the duration in seconds")
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue  # one damaged packet; FFmpeg's own tools go on as well
            for frame in frames:
                yield _frame_samples(frame), check_rate(frame.sample_rate, limits)


def _frame_samples(frame: Any) -> NDArray[Any]:
    """[n, channels] with full scale 1.0, from planar or interleaved samples of any type."""
    try:
        samples = frame.to_ndarray()
    except ValueError as error:  # 64-bit integers
        raise MediaError(f"samples of the type {frame.format.name} are not read") from error
    channels = frame.layout.nb_channels
    interleaved = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    return full_scale(interleaved)


if __name__ == "__main__":
    sys.exit(serve(decode))
