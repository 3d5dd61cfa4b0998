"""Frames of a video file, decoded by FFmpeg. For the worker only.

The file is read twice: once without decoding, to learn when each frame appears, then decoded while
only the wanted frames are kept, each already at its final size. Damage costs what it hits: packets
that cannot be decoded are passed over, and a file that is cut off ends where it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vllm_dynin.processors.codecs.ffmpeg import open_container
from vllm_dynin.processors.codecs.image_io import open_image
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

# Demuxers that read one file and nothing else; playlists, devices and scripts are left out.
FORMATS = (
    "mov,mp4,matroska,webm,avi,gif,apng,flv,mpeg,mpegts,mpegvideo,ogg,asf,ivf,obu,h264,hevc,m4v,"
    "h263,mjpeg,yuv4mpegpipe,nut,mxf,dv,rm,wtv,swf,amv"
)
SEND = "send MP4, MOV, WebM, MKV, AVI, MPEG, GIF, APNG or WebP"

Choice = Callable[[Sequence[int], Fraction], list[int]]
"""Times of all frames, ascending, and seconds of their unit → indices of the wanted ones."""

_TURNS: dict[
    tuple[int, ...], Image.Transpose
] = {  # signs of a, b, c, d: a pixel at (x, y) is shown at (ax + cy, bx + dy)
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_frames(
    stream: BinaryIO, choose: Choice, fit: Callable[[Image.Image], Image.Image], limits: MediaLimits
) -> list[Image.Image]:
    """The chosen frames.

    Args:
        stream: the file.
        choose: which.
        fit: brings a frame, RGB and upright, to its final size.
        limits: see `video.load_frames`.

    Raises:
        MediaError: not a video, no frames, damaged throughout, or over a limit.
    """
    ticks, unit = _packet_times(stream, limits)
    # As a rule a packet is a frame. Where it is not (edit lists, hidden frames, damage), the frames
    # that were decoded tell which are there.
    for _ in range(3):
        chosen = choose(ticks, unit)
        kept, shown = _decode_chosen(stream, set(chosen), fit, limits)
        if len(shown) == len(ticks) and choose(shown, unit) == chosen:
            return [kept[index] for index in chosen]
        ticks = shown
    raise MediaError(f"the video decodes to other frames each time; it is damaged; {SEND}")


@contextmanager
def _open_video(stream: BinaryIO, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream; FFmpeg's errors become MediaError."""
    import av  # here, so that a server which starts workers never loads FFmpeg itself

    # FFmpeg decodes a frame while it probes the streams, before their size can be checked here.
    decoder_options = {"max_pixels": str(limits.max_frame_pixels)}
    try:
        with open_container(stream, FORMATS, decoder_options) as container:
            cover = av.stream.Disposition.attached_pic  # of a sound file; a video stream as well
            films = (v for v in container.streams.video if not v.disposition & cover)
            video = next(films, None)
            if video is None:
                raise MediaError(f"the file has no video stream; {SEND}")
            if video.codec_context is None:
                raise MediaError("the video's codec is unknown; re-encode it, for example as H.264")
            _check_frame_size(video.codec_context, limits)
            video.codec_context.options = decoder_options
            video.codec_context.thread_count = 2  # each thread holds frames
            yield container, video
    except av.error.MemoryError as error:
        raise MemoryError from error
    except av.error.FFmpegError as error:
        raise MediaError(
            f"not a readable video ({error.strerror}); {SEND}, frames of up to "
            f"max_frame_pixels={limits.max_frame_pixels:,} pixels"
        ) from error


def _check_frame_size(sized: Any, limits: MediaLimits) -> None:
    what = f"the pixel count of a {sized.width}×{sized.height} frame"
    limits.check("max_frame_pixels", sized.width * sized.height, what)


def _packets(container: Any, video: Any) -> Iterator[Any]:
    """Packets up to the end, or to where the file is cut off; half a packet there is left out."""
    import av

    packets, last = container.demux(video), None
    while True:
        try:
            packet = next(packets, None)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError:
            if last is None:
                raise
            packet = None
        if packet is None:
            break
        if packet.size:  # an empty one is the end, which `_decoded` tells the decoder itself
            if last is not None:
                yield last
            last = packet
    if last is not None and not last.is_corrupt:
        yield last


def _decoded(container: Any, video: Any) -> Iterator[Any]:
    """Frames in the order of their times, and FFmpeg's error for each packet that is damaged."""
    import av

    for packet in chain(_packets(container, video), (None,)):
        try:
            yield from video.codec_context.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            yield error


def _packet_times(stream: BinaryIO, limits: MediaLimits) -> tuple[list[int], Fraction]:
    """When each frame appears as the container says, ascending, and the unit in seconds."""
    presented, decoded, longest = [], [], 0
    with _open_video(stream, limits) as (container, video):
        unit = video.time_base or Fraction(1, 25)
        for packet in _packets(container, video):
            if not packet.is_discard:
                presented.append(packet.pts)
                decoded.append(packet.dts)
                longest = max(longest, packet.duration or 0)
                what = "the number of frames (counting stopped there)"
                limits.check("max_frames", len(presented), what)
    for times in (presented, decoded):  # the latter has the same distances, where one is missing
        if times and None not in times:
            ticks = sorted(times)
            seconds = (ticks[-1] - ticks[0] + longest) * unit
            limits.check("max_seconds", float(seconds), "the duration in seconds")
            return ticks, unit
    return list(range(len(presented))), Fraction(1, 25)


def _decode_chosen(
    stream: BinaryIO,
    wanted: set[int],
    fit: Callable[[Image.Image], Image.Image],
    limits: MediaLimits,
) -> tuple[dict[int, Image.Image], list[int]]:
    """Decode all frames, keep the wanted ones at their final size; also when each appears.

    Where times are missing or run backwards, frames are numbered instead.
    """
    kept: dict[int, Image.Image] = {}
    times: list[int | None] = []
    failures, reason = 0, ""
    with _open_video(stream, limits) as (container, video):
        for frame in _decoded(container, video):
            if isinstance(frame, Exception):
                failures, reason = failures + 1, str(frame)
                continue
            _check_frame_size(frame, limits)
            if len(times) in wanted:
                kept[len(times)] = fit(_as_shown(frame, limits))
            times.append(frame.pts)
            what = "the number of frames (decoding stopped there)"
            limits.check("max_frames", len(times), what)
    if failures > len(times):
        raise MediaError(
            f"the video is damaged: {failures} of its packets cannot be decoded ({reason}), "
            f"{len(times)} can; {SEND}"
        )
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(later < time for time, later in pairwise(known)):
        known = list(range(len(times)))
    return kept, known


def _as_shown(frame: Any, limits: MediaLimits) -> Image.Image:
    """RGB, transparency on white, upright. Pixels are taken as square, as the original does."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = Image.fromarray(frame.to_ndarray(format="rgba"))
        image = open_image(rgba, limits)
    else:
        image = open_image(frame.to_image(), limits)
    turn = _TURNS.get(_matrix_signs(frame))
    return image if turn is None else image.transpose(turn)


def _matrix_signs(frame: Any) -> tuple[int, ...]:
    """Signs of the display matrix. Other than quarter turns are left as they are, as players do."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return ()
    values = np.frombuffer(bytes(matrix), np.int32)[[0, 1, 3, 4]] / 65536
    return tuple(np.sign(np.round(values)).astype(int).tolist())
