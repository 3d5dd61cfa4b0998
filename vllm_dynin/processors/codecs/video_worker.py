"""Decode the frames of one video file; run by `video.load_frames` in a process of its own.

    python -m vllm_dynin.processors.codecs.video_worker TASK < clip.mp4 > frames.raw

TASK is JSON: num_frames, size (height, width), and what `media_worker` adds. The output is uint8
[num_frames, height, width, 3].

The file is read twice: once without decoding, to count frames, then decoded while only the wanted
frames are kept, each already at its final size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vllm_dynin.processors.codecs.ffmpeg import open_container
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.media_worker import serve

# A fixed list, because FFmpeg also knows playlist formats (HLS, concat) that open other files.
FORMATS = "mov,mp4,matroska,webm,avi,gif"

_ROTATIONS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Which frames of a video to take: floor(linspace(0, total - 1, num_frames)).

    Both of the original's methods, `uniform` and `uniform_sequential`, are this one. A single
    frame is the first.

    Raises:
        MediaError: the video has fewer frames than wanted, or none.
    """
    if total < num_frames:
        raise MediaError(
            f"the video has {total} frames, {num_frames} are wanted; ask for fewer frames"
        )
    return np.linspace(0, total - 1, num_frames).astype(int).tolist()


def decode_frames(
    stream: BinaryIO, num_frames: int, size: tuple[int, int], limits: MediaLimits
) -> list[Image.Image]:
    """The wanted frames at (height, width) = `size`; see `video.load_frames`.

    Raises:
        MediaError: not a video, no frames or too few, damaged, or over a limit.
    """
    total = _count_packets(stream, limits)
    # As a rule a packet is a frame. Where it is not (edit lists, damage), the first pass over the
    # decoded frames tells the true number.
    for _ in range(2):
        chosen = frame_indices(total, num_frames)
        kept, decoded = _decode_chosen(stream, chosen, size, limits)
        if decoded == total:
            return [kept[index] for index in chosen]
        total = decoded
    raise MediaError("the video decodes to another number of frames each time; it is damaged")


@contextmanager
def _open_video(stream: BinaryIO, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; FFmpeg's errors become MediaError."""
    import av  # here, so that a server which starts workers never loads FFmpeg itself

    # FFmpeg decodes a frame while it probes the streams, before their size can be checked here.
    decoder_options = {"max_pixels": str(limits.max_frame_pixels)}
    try:
        with open_container(stream, FORMATS, decoder_options) as container:
            if not container.streams.video:
                raise MediaError("the file has no video stream")
            video = container.streams.video[0]
            if video.codec_context is None:
                raise MediaError("the video's codec is unknown; re-encode it, for example as H.264")
            _check_frame_size(video.codec_context, limits)
            if container.duration is not None:
                seconds = container.duration / av.time_base
                limits.check("max_seconds", seconds, "the duration in seconds")
            video.codec_context.options = decoder_options
            video.codec_context.thread_count = 2  # each thread holds frames
            yield container, video
    except av.error.MemoryError as error:
        raise MemoryError from error
    except av.error.FFmpegError as error:
        raise MediaError(
            f"not a readable video ({error.strerror}); supported: {FORMATS}, "
            f"frames of up to max_frame_pixels={limits.max_frame_pixels:,} pixels"
        ) from error


def _check_frame_size(sized: Any, limits: MediaLimits) -> None:
    what = f"the pixel count of a {sized.width}×{sized.height} frame"
    limits.check("max_frame_pixels", sized.width * sized.height, what)


def _count_packets(stream: BinaryIO, limits: MediaLimits) -> int:
    total = 0
    with _open_video(stream, limits) as (container, video):
        for packet in container.demux(video):
            if packet.size and not packet.is_discard:
                total += 1
                limits.check("max_frames", total, "the number of frames (counting stopped there)")
    return total


def _decode_chosen(
    stream: BinaryIO, chosen: Sequence[int], size: tuple[int, int], limits: MediaLimits
) -> tuple[dict[int, Image.Image], int]:
    """Decode all frames, keep the chosen ones at their final size; also the true frame count."""
    wanted = set(chosen)
    kept: dict[int, Image.Image] = {}
    decoded = 0
    with _open_video(stream, limits) as (container, video):
        for frame in container.decode(video):
            _check_frame_size(frame, limits)
            if decoded in wanted:
                kept[decoded] = resize_and_crop(_upright(frame), *size)
            decoded += 1
            limits.check("max_frames", decoded, "the number of frames (decoding stopped there)")
    return kept, decoded


def _upright(frame: Any) -> Image.Image:
    # The angle is counter-clockwise, as Pillow's transpositions are. Other than quarter turns are
    # left as they are, as players do.
    turn = _ROTATIONS.get(round(frame.rotation) % 360)
    image: Image.Image = frame.to_image()
    return image if turn is None else image.transpose(turn)


def _decode(stream: BinaryIO, task: dict[str, Any], limits: MediaLimits) -> Iterator[bytes]:
    height, width = task["size"]
    for frame in decode_frames(stream, task["num_frames"], (height, width), limits):
        yield frame.tobytes()


if __name__ == "__main__":
    sys.exit(serve(_decode))
