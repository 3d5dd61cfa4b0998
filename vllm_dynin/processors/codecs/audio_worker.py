"""Decode the sound of one file; run by `audio_io.load_audio` in a process of its own.

    python -m vllm_dynin.processors.codecs.audio_worker TASK < clip.m4a > samples.raw

TASK is JSON: target_rate (Hz), and what `media_worker` adds. The output is float32 [N].
libsndfile reads what it can to the end (FLAC, Ogg, AIFF, …), FFmpeg the rest (MP3, MP4, WebM, …)
and files that are damaged. Neither is given a name to open.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from vllm_dynin.processors.codecs.audio_blocks import (
    SEND,
    Block,
    Samples,
    check_rate,
    check_size,
    collect,
    full_scale,
)
from vllm_dynin.processors.codecs.ffmpeg import open_container
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.media_worker import serve
from vllm_dynin.processors.codecs.ogg import ogg_layout, without_cut_page

# Demuxers that read one file and nothing else; playlists, devices and scripts are left out.
_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mp4,mpeg,mpegts,"
    "ogg,rm,tta,voc,w64,wav,webm,wv"
)
_BLOCK_VALUES = 1 << 18
_MERGED_VALUES = 1 << 15
"""Frames of FFmpeg are joined to blocks of so many values: some have 20 samples."""
_LEAST_BYTES_PER_SECOND = 400
"""Of speech codecs. A header that claims less is not believed: what is decoded is counted."""
_STATED = ("mov", "matroska", "ogg", "avi", "asf", "aiff", "caf")
"""Demuxers whose files state a duration; that of the others is guessed from a few frames."""


class _LeftToFFmpeg(Exception):
    """What libsndfile says of a file; nothing where it is not asked."""


def decode(stream: BinaryIO, task: dict[str, Any], limits: MediaLimits) -> Iterator[bytes]:
    """The samples of the first audio track, mono at `task["target_rate"]`.

    Raises:
        MediaError: no audio, damaged, or over a limit.
        MemoryError: FFmpeg could not get the memory it wanted.
    """
    import av  # here, so that a server which starts workers never loads FFmpeg itself

    stream = _mended(stream)
    try:
        yield _with_libsndfile(stream, task["target_rate"], limits).tobytes()
        return
    except _LeftToFFmpeg as why:
        reason = f"libsndfile: {why}; " if str(why) else ""
    try:
        samples = collect(lambda: _ffmpeg_blocks(stream, limits), task["target_rate"], limits)
    except av.error.MemoryError as error:
        raise MemoryError from error
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(
            f"this is not audio that can be read ({reason}FFmpeg: "
            f"{getattr(error, 'strerror', None) or error}); {SEND}"
        ) from error
    yield samples.tobytes()


def _mended(stream: BinaryIO) -> BinaryIO:
    """The same file, without what it says wrongly of its own end."""
    stream.seek(0)
    head = stream.read(12)
    if head.startswith(b"OggS") and (cut_page := ogg_layout(stream).cut_page) is not None:
        return without_cut_page(stream, cut_page)
    if head.startswith(b".snd"):
        stream.seek(0)
        return io.BytesIO(head[:8] + b"\xff" * 4 + stream.read()[12:])  # to the end of the file
    return stream


def _with_libsndfile(stream: BinaryIO, target_rate: int, limits: MediaLimits) -> Samples:
    stream.seek(0)
    head = stream.read(36)
    if head.startswith(b"ID3") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        # libsndfile's MP3 decoder writes a line to stderr for every damaged frame.
        raise _LeftToFFmpeg
    if head.startswith(b"fLaC"):
        # libsndfile believes the length in the header, and needs one.
        raise _LeftToFFmpeg
    if head[28:] == b"OpusHead":
        # libsndfile 1.2.2 returns noise for some files when asked for many samples at once.
        raise _LeftToFFmpeg
    if head.startswith(b"OggS") and not ogg_layout(stream).is_plain:
        raise _LeftToFFmpeg
    try:
        return collect(lambda: _sndfile_blocks(stream, limits), target_rate, limits)
    except soundfile.LibsndfileError as error:
        raise _LeftToFFmpeg(error.error_string.rstrip(".")) from error


def _check_claim(seconds: float, size: int, limits: MediaLimits) -> None:
    """Refuse what is too long by its header before it is decoded, if the header can be right."""
    if size >= _LEAST_BYTES_PER_SECOND * seconds:
        limits.check("max_seconds", seconds, "the duration in seconds")


class _BoundedSeeks:
    """A file in which a seek to before its start is ignored: an error would arise in a C callback.

    Damaged files make libsndfile try it; it then reads on and finds the damage itself.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.read, self.tell = stream.read, stream.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with contextlib.suppress(ValueError, OSError):
            self._stream.seek(offset, whence)
        return self._stream.tell()


def _sndfile_blocks(stream: BinaryIO, limits: MediaLimits) -> Iterator[Block]:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with soundfile.SoundFile(_BoundedSeeks(stream)) as sound:
        if sound.frames == 0:
            raise _LeftToFFmpeg("it has no samples")
        rate = check_rate(sound.samplerate, limits)
        _check_claim(sound.frames / rate, size, limits)
        check_size(0, sound.channels, rate, limits)
        step = max(_BLOCK_VALUES // sound.channels, 1)
        while len(block := sound.read(step, dtype="float32", always_2d=True)):
            yield block, rate


def _ffmpeg_blocks(stream: BinaryIO, limits: MediaLimits) -> Iterator[Block]:
    import av

    size = stream.seek(0, os.SEEK_END)
    with open_container(stream, _FORMATS) as container:
        if not container.streams.audio:
            raise MediaError(f"the file has no audio track; {SEND}")
        track = container.streams.audio[0]
        if container.duration is not None and container.format.name.startswith(_STATED):
            _check_claim(container.duration / av.time_base, size, limits)
        yield from _merged(_frames(container, track, limits))


def _frames(container: Any, track: Any, limits: MediaLimits) -> Iterator[Block]:
    """What can be decoded: damaged packets are passed over, as FFmpeg's own tools do."""
    import av

    has_begun = False
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets, None)
        except av.error.MemoryError:
            raise
        except av.FFmpegError:
            if not has_begun:
                raise
            return  # cut off
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            has_begun = True
            yield _frame_samples(frame), check_rate(frame.sample_rate, limits)


def _merged(frames: Iterator[Block]) -> Iterator[Block]:
    """Neighbours with the same rate and channels, joined."""
    held: list[NDArray[Any]] = []
    rate, values = 0, 0
    for samples, its_rate in frames:
        is_other = held and (its_rate, samples.shape[1]) != (rate, held[0].shape[1])
        if is_other or values >= _MERGED_VALUES:
            yield np.concatenate(held), rate
            held, values = [], 0
        held.append(samples)
        rate, values = its_rate, values + samples.size
    if held:
        yield np.concatenate(held), rate


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
