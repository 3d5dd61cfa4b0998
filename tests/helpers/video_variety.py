"""Two hundred video files: name → what is to be seen, and how the file is made.

The names say what is special. `TOO_DAMAGED` are files of which no reader could tell what they show:
they are to be refused. `STILL` shows a digit that does not move.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle

import numpy as np
from PIL import Image, ImageOps

from helpers.video_files import Film, animated, encoded, padded, still

Maker = Callable[[Film], bytes]

# Held-out digits of which dynin-tiny knows what they are and where they go.
FILMS = (Film(1443, "left"), Film(1442, "right"))


def film(*arguments: object, side: int = 240, **options: object) -> Maker:
    """A maker that encodes the frames at a size."""
    return lambda what: encoded(what.frames(side), *arguments, **options)  # type: ignore[arg-type]


def containers() -> Iterator[tuple[str, Maker]]:
    """Codecs in the containers that phones, browsers, cameras and editors write."""
    for container, codec, pixels in (
        ("mp4", "libx264", "yuv420p"), ("mp4", "libx265", "yuv420p"), ("mp4", "mpeg4", "yuv420p"),
        ("mp4", "libsvtav1", "yuv420p"), ("mp4", "libvpx-vp9", "yuv420p"),
        ("mp4", "mjpeg", "yuvj420p"), ("mov", "libx264", "yuv420p"), ("mov", "libx265", "yuv420p"),
        ("mov", "mjpeg", "yuvj422p"), ("mov", "prores_ks", "yuv422p10le"),
        ("mov", "qtrle", "rgb24"), ("mov", "png", "rgb24"), ("mov", "rawvideo", "uyvy422"),
        ("ismv", "libx264", "yuv420p"), ("f4v", "libx264", "yuv420p"),
        ("3gp", "libx264", "yuv420p"), ("3gp", "mpeg4", "yuv420p"),
        ("matroska", "libx264", "yuv420p"), ("matroska", "libx265", "yuv420p10le"),
        ("matroska", "libvpx", "yuv420p"), ("matroska", "libsvtav1", "yuv420p10le"),
        ("matroska", "ffv1", "yuv420p"), ("avi", "huffyuv", "yuv422p"),
        ("matroska", "mpeg2video", "yuv420p"), ("avi", "utvideo", "gbrp"),
        ("webm", "libvpx", "yuv420p"), ("webm", "libvpx-vp9", "yuv420p"),
        ("webm", "libsvtav1", "yuv420p"), ("avi", "mpeg4", "yuv420p"), ("avi", "mjpeg", "yuvj420p"),
        ("avi", "msmpeg4v2", "yuv420p"), ("avi", "msmpeg4", "yuv420p"),
        ("avi", "libx264", "yuv420p"), ("avi", "huffyuv", "rgb24"), ("avi", "rawvideo", "bgr24"),
        ("avi", "cinepak", "rgb24"), ("avi", "ffv1", "yuv444p"), ("avi", "zmbv", "bgr0"),
        ("flv", "flv", "yuv420p"), ("flv", "libx264", "yuv420p"), ("mpegts", "libx264", "yuv420p"),
        ("mpegts", "libx265", "yuv420p"), ("mpegts", "mpeg2video", "yuv420p"),
        ("mpeg", "mpeg1video", "yuv420p"), ("vob", "mpeg2video", "yuv420p"),
        ("asf", "wmv1", "yuv420p"), ("asf", "wmv2", "yuv420p"), ("asf", "msmpeg4", "yuv420p"),
        ("ogg", "libvpx", "yuv420p"), ("ivf", "libvpx", "yuv420p"),
        ("ivf", "libvpx-vp9", "yuv420p"), ("ivf", "libsvtav1", "yuv420p"),
        ("nut", "mpeg4", "yuv420p"), ("mxf", "mpeg2video", "yuv420p"),
        ("h264", "libx264", "yuv420p"), ("hevc", "libx265", "yuv420p"), ("m4v", "mpeg4", "yuv420p"),
        ("mpeg2video", "mpeg2video", "yuv420p"), ("yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
        ("mjpeg", "mjpeg", "yuvj420p"), ("obu", "libsvtav1", "yuv420p"), ("apng", "apng", "rgb24"),
        ("gif", "gif", "rgb8"),
    ):  # fmt: skip
        yield f"{container} {codec} {pixels}", film(container, codec, pixels)


def pictures() -> Iterator[tuple[str, Maker]]:
    """Animations that are pictures, as messengers send them."""
    yield "gif by Pillow", lambda what: animated(what.frames(), "GIF")
    yield "gif of 48 pixels", lambda what: animated(what.frames(48), "GIF")
    yield "gif without times", lambda what: animated(what.frames(), "GIF", 0)
    yield "apng by Pillow", lambda what: animated(what.frames(), "PNG")
    yield "apng with a cover", covered_apng
    yield "apng, transparent", transparent
    yield "animated webp", lambda what: animated(what.frames(), "WEBP")
    yield "animated webp, lossless", lambda what: animated(what.frames(), "WEBP", lossless=True)
    yield "animated avif", lambda what: animated(what.frames(), "AVIF")
    yield "tiff of several pages", lambda what: animated(what.frames(), "TIFF")
    yield "grey gif", lambda what: animated([f.convert("L") for f in what.frames()], "GIF")
    yield "1 bit gif", lambda what: animated([f.convert("1") for f in what.frames()], "GIF")


def covered_apng(what: Film) -> bytes:
    """The first picture is for those who cannot play it, and no part of the film."""
    return animated(
        [Image.new("RGB", (240, 240), "red"), *what.frames()], "PNG", default_image=True
    )


def transparent(what: Film) -> bytes:
    """Black and grey stand on transparent, which is laid on white: the digit is the clear part."""
    frames = []
    for frame in what.frames():
        clear = Image.new("RGBA", frame.size, "black")
        clear.putalpha(ImageOps.invert(frame.convert("L")))
        frames.append(clear)
    return animated(frames, "PNG")


def rates() -> Iterator[tuple[str, Maker]]:
    """Rates, and times that no rate describes."""
    for rate in (1, 5, 10, 12.5, 15, 23.976, 24, 29.97, 50, 60, 120, 240):
        yield f"mp4 at {rate} frames a second", film(rate=rate)
    for rate in (1, 7, 30, 59.94):
        yield f"webm at {rate} frames a second", film("webm", "libvpx", rate=rate)
    for repeats in (3, 10):
        yield (
            f"each frame {repeats} times",
            lambda what, n=repeats: encoded([f for f in what.frames() for _ in range(n)], rate=30),
        )
    irregular = [0, 1, 1.9, 3.2, 4, 5.1, 5.9, 7, 8]
    for container, codec in (("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx"),
                             ("mov", "mpeg4"), ("mp4", "libx265"), ("nut", "mpeg4")):  # fmt: skip
        yield f"{container} of {codec} at no rate", film(container, codec, times=irregular)
    for container, codec in (("mp4", "libx264"), ("matroska", "libvpx"), ("webm", "libvpx-vp9")):
        yield f"{container} with a burst", burst(container, codec)
    yield "gif with a burst", gif_burst
    yield "apng at no rate", lambda what: animated(what.frames(), "PNG", [900, 1100] * 4 + [800])
    yield "webp at no rate", lambda what: animated(what.frames(), "WEBP", [900, 1100] * 4 + [800])
    yield "starts at a hundred seconds", film("matroska", times=[100 + t for t in range(9)])
    yield "starts at an hour", film("webm", "libvpx", times=[3600 + 0.1 * t for t in range(9)])
    yield "webm without a duration", film("webm", "libvpx", muxer={"live": "1"})
    yield "webm of vp9 without a duration", film("webm", "libvpx-vp9", muxer={"live": "1"})
    yield "matroska without a duration", film("matroska", "libx264", muxer={"live": "1"})
    yield "no B-frames", film(options={"bf": "0"})
    yield "many B-frames", film(options={"bf": "4", "g": "30"})
    yield "B-frames in avi", film("avi", "mpeg4", options={"bf": "2"})
    yield "only key frames", film(options={"g": "1"})


def other_digit(what: Film) -> list[Image.Image]:
    """Another digit, at rest."""
    resting = Film(what.index + 7, what.direction).frames()[4]
    return [resting] * 40


def burst(container: str, codec: str) -> Maker:
    """A frame a second, and after the fourth eighty frames of something else within a second."""

    def make(what: Film) -> bytes:
        film = what.frames()
        frames = [*film[:4], *other_digit(what), *film[4:]]
        times = [0, 1, 2, 3, *np.linspace(3.01, 3.8, 40).tolist(), 4, 5, 6, 7, 8]
        return encoded(frames, container, codec, times=times)

    return make


def gif_burst(what: Film) -> bytes:
    """The same with the durations of a GIF."""
    film = what.frames()
    frames = [*film[:4], *other_digit(what), *film[4:]]
    return animated(frames, "GIF", [1000] * 3 + [200] + [20] * 40 + [1000] * 5)


def layouts() -> Iterator[tuple[str, Maker]]:
    """How a container is put together."""
    yield "index in front", film(muxer={"movflags": "faststart"})
    yield "in fragments", film(muxer={"movflags": "frag_keyframe+empty_moov"})
    yield "a fragment a frame", film(muxer={"movflags": "frag_every_frame+empty_moov"})
    yield "dash", film(muxer={"movflags": "dash"})
    yield (
        "fragments without an index",
        film(muxer={"movflags": "frag_custom+empty_moov+default_base_moof"}),
    )
    yield "webm for dash", film("webm", "libvpx-vp9", muxer={"dash": "1"})
    yield "matroska with its cues in front", film("matroska", muxer={"reserve_index_space": "4096"})
    yield "sound in front, mp4", film(has_sound=True)
    yield "sound in front, mov", film("mov", has_sound=True)
    yield "sound in front, webm", film("webm", "libvpx", has_sound=True)
    yield "sound in front, matroska", film("matroska", has_sound=True)
    yield "sound in front, ts", film("mpegts", has_sound=True)
    yield "junk behind", lambda what: encoded(what.frames()) + b"\0" * 5000
    yield "ts with junk in front", lambda what: b"x" * 77 + encoded(what.frames(), "mpegts")


def sizes() -> Iterator[tuple[str, Maker]]:
    """Sizes and shapes; the film is in the middle."""
    for side in (48, 96, 144, 400, 720):
        yield f"{side} pixels a side", film(side=side)
    for side in (97, 145, 241):
        yield f"{side} pixels, odd", film("mp4", "libx264", "yuv444p", side=side)
    yield "odd in gif", lambda what: animated(what.frames(101), "GIF")
    yield "odd in webm", film("webm", "libvpx", side=145)
    yield "odd in avi", film("avi", "mjpeg", "yuvj444p", side=145)
    for width, height in ((320, 240), (240, 320), (426, 240), (240, 426), (722, 240), (250, 242)):
        yield (
            f"{width}×{height}",
            lambda what, w=width, h=height: encoded(padded(what.frames(), w, h)),
        )
    yield "full hd", lambda what: encoded(padded(what.frames(1056), 1920, 1080))
    yield "full hd, held upright", lambda what: encoded(padded(what.frames(1056), 1080, 1920))
    yield (
        "4k",
        lambda what: encoded(
            padded(what.frames(2160), 3840, 2160), options={"preset": "ultrafast"}
        ),
    )


def pixel_formats() -> Iterator[tuple[str, Maker]]:
    """Depths, subsampling and orders of pixels."""
    for pixels in ("yuv422p", "yuv444p", "yuvj420p", "yuvj444p", "yuv420p10le", "yuv422p10le",
                   "yuv444p10le", "nv12", "gray", "gray10le"):  # fmt: skip
        yield f"h264 {pixels}", film("mp4", "libx264", pixels)
    for pixels in ("yuv410p", "yuv411p", "yuv420p16le", "yuv444p12le", "gray", "gray16le",
                   "gbrp10le", "bgr0", "bgra", "rgb48le", "yuva420p", "yuva444p"):  # fmt: skip
        yield f"ffv1 {pixels}", film("matroska", "ffv1", pixels)
    for pixels in ("rgb24", "gray", "yuyv422", "yuv420p"):
        yield f"raw {pixels}", film("avi", "rawvideo", pixels)
    for pixels in ("gray", "rgba", "rgb48be", "gray16be", "monob", "ya8"):
        yield f"png {pixels} in mov", film("mov", "png", pixels)
    yield "h264 rgb", film("matroska", "libx264rgb", "rgb24")
    yield "vp9 yuv444p", film("webm", "libvpx-vp9", "yuv444p")
    yield "vp9 with transparency", film("webm", "libvpx-vp9", "yuva420p")
    yield "qtrle argb", film("mov", "qtrle", "argb")
    yield "prores 4444", film("mov", "prores_ks", "yuva444p10le")


_TURNS = {
    90: ((0, 1, -1, 0), Image.Transpose.ROTATE_90),
    180: ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    270: ((0, -1, 1, 0), Image.Transpose.ROTATE_270),
    "mirrored": ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
}


def turned(matrix: tuple[int, ...], undo: Image.Transpose, codec: str = "libx264") -> Maker:
    """Held another way, with a matrix that says so."""

    def make(what: Film) -> bytes:
        data = bytearray(encoded([f.transpose(undo) for f in what.frames()], "mov", codec))
        at = data.find(b"tkhd") + 44
        a, b, c, d = (value << 16 for value in matrix)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        return bytes(data)

    return make


def orientations() -> Iterator[tuple[str, Maker]]:
    """Phones that were not held upright."""
    for name, (matrix, undo) in _TURNS.items():
        yield f"held at {name}", turned(matrix, undo)
    yield "hevc held at 90", turned(*_TURNS[90], "libx265")


def cut(maker: Maker, share: float) -> Maker:
    """The front part of a file."""
    return lambda what: (data := maker(what))[: int(len(data) * share)]


def spoilt(maker: Maker, share: float, count: int = 12) -> Maker:
    """Some bytes in the middle are others."""

    def make(what: Film) -> bytes:
        data = bytearray(maker(what))
        at = int(len(data) * share)
        data[at : at + count] = bytes(value ^ 0x5A for value in data[at : at + count])
        return bytes(data)

    return make


def damage() -> Iterator[tuple[str, Maker]]:
    """Cut off, or hit in the middle, and still to be understood."""
    long = {"options": {"g": "4"}}
    for name, maker in (
        ("mp4 with its index in front", film(muxer={"movflags": "faststart"}, **long)),
        ("mp4 in fragments", film(muxer={"movflags": "frag_every_frame+empty_moov"}, **long)),
        ("matroska", film("matroska", **long)),
        ("webm", film("webm", "libvpx", **long)),
        ("avi", film("avi", "mjpeg", "yuvj420p")),
        ("ts", film("mpegts", **long)),
        ("flv", film("flv", **long)),
        ("gif", lambda what: animated(what.frames(), "GIF")),
        ("apng", lambda what: animated(what.frames(), "PNG")),
        ("raw h264", film("h264", **long)),
        ("mjpeg", film("mjpeg", "mjpeg", "yuvj420p")),
    ):
        if name != "raw h264":  # nothing tells that its last frame is half a frame
            yield f"{name}, cut off at 80 %", cut(maker, 0.8)
        yield f"{name}, without its last bytes", cut(maker, 0.99)
    yield "avi, hit in the middle", spoilt(film("avi", "mjpeg", "yuvj420p"), 0.5)
    yield (
        "matroska of key frames, hit in the middle",
        spoilt(film("matroska", options={"g": "1"}), 0.6),
    )
    yield "ts of key frames, hit in the middle", spoilt(film("mpegts", options={"g": "1"}), 0.6)


def shorts() -> Iterator[tuple[str, Maker]]:
    """Fewer frames than are looked at: they repeat."""
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"),
                             ("matroska", "libx265")):  # fmt: skip
        yield (
            f"{container} of three frames",
            lambda what, a=container, b=codec: encoded(what.frames()[::4], a, b),
        )
    for kind in ("GIF", "PNG", "WEBP"):
        yield f"{kind} of three frames", lambda what, k=kind: animated(what.frames()[::4], k)
    yield "mp4 of four frames", lambda what: encoded([what.frames()[i] for i in (0, 3, 5, 8)])


def stills() -> Iterator[tuple[str, Maker]]:
    """One picture, as a file of it or as a film of one frame."""
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        yield f"a {kind} picture", lambda what, k=kind: still(what.frames()[4], k)
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mjpeg")):
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        yield (
            f"one frame of {container}",
            lambda what, a=container, b=codec, p=pixels: encoded(what.frames()[4:5], a, b, p),
        )


def head(maker: Maker, size: int) -> Maker:
    """The first bytes of a file."""
    return lambda what: maker(what)[:size]


def zeros(what: Film) -> bytes:
    """An MP4 whose frames, and the index behind them, are zeros."""
    data = encoded(what.frames())
    return data[: data.find(b"mdat") + 4] + bytes(len(data))


def too_damaged() -> Iterator[tuple[str, Maker]]:
    """Of which nothing can be told."""
    yield "nothing", lambda what: b""
    yield "text", lambda what: b"this is no video " * 99
    yield "mp4 whose index was at its cut end", cut(film(), 0.8)
    yield "mov whose index was at its cut end", cut(film("mov", "mjpeg", "yuvj420p"), 0.5)
    for container, codec, pixels in (("mp4", "libx264", "yuv420p"), ("webm", "libvpx", "yuv420p"),
                                     ("matroska", "libx264", "yuv420p"), ("gif", "gif", "rgb8"),
                                     ("avi", "mpeg4", "yuv420p")):  # fmt: skip
        yield f"the head of {container}", head(film(container, codec, pixels), 60)
    yield "zeros for frames", zeros
    yield "an unknown codec", lambda what: encoded(what.frames()).replace(b"avc1", b"zzz1")
    yield "half a picture's head", head(lambda what: still(what.frames()[0], "PNG"), 40)
    yield "a playlist", lambda what: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    yield "a list of files", lambda what: b"ffconcat version 1.0\nfile /etc/hostname\n"
    yield "an empty gif", lambda what: animated(what.frames(), "GIF")[:13] + b";"


def _table(*groups: Callable[[], Iterator[tuple[str, Maker]]]) -> dict[str, tuple[Film, Maker]]:
    names = [pair for group in groups for pair in group()]
    counts = Counter(name for name, _ in names)
    assert max(counts.values()) == 1, f"two files of one name: {counts.most_common(3)}"
    return {name: (what, make) for (name, make), what in zip(names, cycle(FILMS))}


MOVING = _table(
    containers, pictures, rates, layouts, sizes, pixel_formats, orientations, damage, shorts
)
STILL = _table(stills)
TOO_DAMAGED = _table(too_damaged)


@cache
def file_of(name: str) -> bytes:
    """The bytes of a file, made once."""
    what, make = (MOVING | STILL | TOO_DAMAGED)[name]
    return make(what)
